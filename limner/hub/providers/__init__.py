"""Provider adapters, one file (or folder) each, all speaking `base`, each with an `ADAPTER` by which `registry` finds it.

Beside them stands what they share: `asking` (the way out), `verdicts` (errors), `rows` (addresses and configurations), `texts` and
`schemas` (jobs), and for chats of other interfaces than OpenAI's `conversation`, `replies` and `translating`.
"""
