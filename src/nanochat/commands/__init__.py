"""What every command is made of: composing, checking the settings, errors in one line, help."""
