"""An order as it lies with the client: JOB.toml, the folder of code and the files of data that it names."""

from pathlib import Path, PurePath

from awfulowl.errors import InputError
from awfulowl.jobs.archive import check_name, read_folder
from awfulowl.jobs.hosting import Own
from awfulowl.jobs.job import bind, read_job_file
from awfulowl.jobs.package import MAX_DATA_BYTES
from awfulowl.models.archives import read_bounded


def read_order(path: Path) -> Own:
    """Read JOB.toml and all that it names; a file of data is known by its name without folders.

    Raises:
        InputError: something is missing, is no plain file, is over a limit, or two files of data share a name.
    """
    order = read_job_file(path)
    folder = path.parent
    code = folder / order.code
    if not code.is_dir():
        raise InputError(f"{path}: code = {order.code!r} is no folder beside it")
    places: dict[str, Path] = {}
    for place in order.data:
        name = check_name(PurePath(place).name)
        if name in places:
            raise InputError(f"{path}: two files of data are called {name!r}; rename one")
        places[name] = folder / place
    data = {name: _content(place) for name, place in places.items()}
    files = read_folder(code)
    return Own(bind(order, files, data), files, data)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path}: no such file of data")
    try:
        return read_bounded(path, min(MAX_DATA_BYTES, path.stat().st_size))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
