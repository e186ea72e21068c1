"""Every exception that parsl-balsam raises; each docstring says what the user should do about it.

All of them carry their whole message as the only constructor argument, so that they survive pickling.
"""


class BalsamError(Exception):
    """Base of all errors of parsl-balsam. Catch it to handle any of them."""


class ConfigurationError(BalsamError, ValueError):
    """An argument of the executor, of a policy or of a command is wrong. Correct it as the message says."""


class InvalidResources(ConfigurationError):
    """A ``parsl_resource_specification`` has an unknown key or a wrong value. Correct the key that is named."""


class ImpossibleTask(BalsamError):
    """No block this executor may request could run the task. Ask for less, or raise the provider's limits."""


class DatabaseUnavailable(BalsamError):
    """The database cannot be opened or does not answer. Check the URL, that the server runs, and file permissions."""


class DatabaseDown(DatabaseUnavailable):
    """The database server refuses connections: it is stopped, or starting. Start it (``parsl-balsam db start DIR``)."""


class DatabaseDenied(DatabaseUnavailable):
    """There is no database of that name, or it does not let you in. Correct the URL: its name, user and password."""


class SchemaMismatch(BalsamError):
    """The database's tables are of another version than this parsl-balsam's. Older ones are brought up to date by
    ``parsl-balsam db upgrade --database WHERE``; for newer ones, install a newer parsl-balsam."""


class DatabaseInUse(BalsamError):
    """The database cannot be upgraded or signed while scripts or launchers work with it. End those that are named, or
    wait for them."""


class BackupFailed(BalsamError):
    """The database could not be copied before its upgrade, and was left as it is. Do as the message says, or copy it
    yourself and pass ``--no-backup``."""


class ServerError(BalsamError):
    """The user's own PostgreSQL could not be set up, started or stopped. The message has the server's own words."""


class WorkflowBusy(BalsamError):
    """Another run drives this workflow. Wait for it or end it; the message names its host, process and start."""


class WorkflowLost(BalsamError):
    """Another run took this workflow over while this one was not heard of. Start this script again when it is free."""


class RunEnded(BalsamError):
    """The run ended before the task. Start the script again with the same ``workflow`` to go on where it stopped."""


class NotSerializable(BalsamError):
    """An argument, a function, a result or an exception cannot be turned into bytes. Pass data that can be pickled."""


class UnreadablePayload(BalsamError):
    """Stored bytes cannot be turned back into objects here. Make the class importable where it is read, with a
    constructor that takes what it was pickled with."""


class UntrustedPayload(BalsamError):
    """Stored bytes were altered or not written with your key, so they were not used. If your key file was replaced, put
    the old one back. If only you can write to the database, ``parsl-balsam db sign`` signs what is there; else find out
    who wrote it."""


class UnreadableRecord(BalsamError):
    """A value in the database is not as parsl-balsam writes it: it was changed by other means, or the disk is damaged.
    Put the database back from a copy, or cancel the task and call it anew."""


class TaskCancelled(BalsamError):
    """The task was cancelled by ``parsl_balsam.cancel`` or ``parsl-balsam cancel``. Use ``retry`` to run
    it after all."""


class TaskTimeout(BalsamError):
    """The task ran longer than its ``timeout_s`` and was killed. Raise the limit, or make the task smaller."""


class TaskCrashed(BalsamError):
    """The task's process died, or its node or launcher was lost, too often. Look at the output of its attempts
    (``parsl-balsam show ID``): a segmentation fault or too little memory are the usual causes."""


class RankFailed(BalsamError):
    """One rank of a parallel function raised an exception, or ended otherwise. The message has the rank's number and
    its traceback; what it raised is the ``__cause__``. Mend the function as if it had failed alone."""


class TaskNotFound(BalsamError):
    """No such task in this database. ``parsl-balsam tasks`` lists the tasks there are."""


class AllocationError(BalsamError):
    """The launcher cannot tell which nodes and cores it has. Set the variable that is named."""


class BadMessage(BalsamError):
    """What another process of the block sent is no message. If a task writes to descriptors that it did not open, mend
    the task; if the nodes have other versions of parsl-balsam than their launcher, install one for all."""


class SubmitRefused(BalsamError):
    """The scheduler refused a block. The message has its own words; correct the provider's options, or wait if it is a
    limit."""


class SchedulerUnavailable(BalsamError):
    """The scheduler's commands are missing or do not answer. Run where they are on the PATH, such as a login node, and
    try them by hand."""
