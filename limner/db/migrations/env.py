"""Alembic's entry: always online, on the connection that limner.db.migrate opened."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="limner", transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
