"""Owns: connections, the embedded server, roles, the signed tenant context, migrations and the catalog lint.

Words: `tenant_tx` (one organization's data), `system_tx` (installation-wide, with a reason), `Tx` (what verbs
receive). Invariants: no run-time connection ever changes role; a tenant statement without a signed context
raises. Leaves to others: what the tables mean.
"""
