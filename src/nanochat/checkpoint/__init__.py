"""The checkpoint folder, its lineage, and resolving what a user types to a checkpoint."""
