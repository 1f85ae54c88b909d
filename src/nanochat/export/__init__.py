"""A checkpoint for other programs: Hugging Face's files, the original's files, an archive; and the
proof that it is the same model."""
