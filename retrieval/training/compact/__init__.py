"""The script that makes the bundled encoder, stage by stage; see `__main__`."""
