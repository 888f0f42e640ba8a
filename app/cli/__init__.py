"""The `plan` command, one file a sub-command."""
