"""The errors that a user can mend. Their text says what happened, where, and what to do; the command line
prints it without a traceback."""


class ReproError(Exception):
    """Base of all of them."""


class ParamsError(ReproError):
    """`params.yaml` asks for something that does not exist."""


class DataError(ReproError):
    """The data set could not be had, or is not what it must be."""


class CheckpointError(ReproError):
    """A checkpoint is damaged, or belongs to another run."""


class OtherMachineError(CheckpointError):
    """The run was begun on another kind of machine, and somebody has to say whether it moves or starts over."""


class TrainingError(ReproError):
    """Training cannot go on: the loss is not finite, or memory ran out."""


class RunLockedError(ReproError):
    """Another process trains this run."""
