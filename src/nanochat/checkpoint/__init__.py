"""The checkpoint folder, its lineage, and finding one by what a user types."""
