"""Every SQL statement of parsl-balsam; nothing else talks SQL."""
