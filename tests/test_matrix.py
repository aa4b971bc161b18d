"""A matrix is written, read back the same, and refused if it is no matrix; a cell is found by its names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from firedoor.errors import SpecError, StoreError
from firedoor.matrix import Matrix, open_matrix
from firedoor.stats import transfer_rate
from reading_fakes import Attack, Draft, Source, Target, mask

N = 8
NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12), min_size=4, max_size=4, unique=True
)


def draft(source: str = "s", attack: str = "a", plain: str = "t", random: str = "r") -> Draft:
    made = Draft(
        np.arange(N),
        [Target(plain), Target(random, random=True)],
        [Source(source)],
        [Attack(attack), Attack("b" + attack)],
        draws=3,
    )
    made.fool(source, attack, plain, mask(N, 1, 2))
    made.fool(source, attack, random, np.arange(3) < np.arange(N)[:, None] % 4)
    made.fool("itself", attack, plain, mask(N, 1, 2, 3))
    made.cells[source, "b" + attack, plain] = np.array([-1, *range(1, N)])
    made.reasons["s|ba|t"] = "no finite answer"
    return made


def test_written_and_read_back_it_is_the_same(tmp_path: Path) -> None:
    matrix = draft().matrix()
    matrix.write(tmp_path / "m.nc")
    again = open_matrix(tmp_path / "m.nc")
    assert again.meta == matrix.meta
    assert set(again.data.variables) == set(matrix.data.variables)
    for name in matrix.data.variables:
        one, two = matrix.data[name], again.data[name]
        assert one.dims == two.dims, name
        assert one.values.tolist() == two.values.tolist(), name
        if one.dtype.kind == "i":
            assert one.dtype == two.dtype, name
    assert (again.sources, again.attacks, again.targets, again.ids) == (matrix.sources, matrix.attacks, matrix.targets, matrix.ids)
    assert transfer_rate(again, "s", "a", "t") == transfer_rate(matrix, "s", "a", "t")
    assert transfer_rate(again, "s", "a", "r") == transfer_rate(matrix, "s", "a", "r")


def test_the_same_matrix_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    for name in ("one.nc", "two.nc"):
        draft().matrix().write(tmp_path / name)
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "two.nc").read_bytes()
    open_matrix(tmp_path / "one.nc").write(tmp_path / "again.nc")
    assert (tmp_path / "one.nc").read_bytes() == (tmp_path / "again.nc").read_bytes()
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path.insert(0, {str(here)!r}); from pathlib import Path\n"
        "import importlib.util as u; spec = u.spec_from_file_location('t', sys.argv[1]); m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
        "m.draft().matrix().write(Path('three.nc')); assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, __file__], cwd=tmp_path, timeout=60, check=True)
    assert (tmp_path / "three.nc").read_bytes() == (tmp_path / "one.nc").read_bytes()


def test_cells_that_were_not_run_take_no_room(tmp_path: Path) -> None:
    """Stored: the labels of the three cells that were run. Read back: all of them, with -1 elsewhere."""
    n, many = 500, [f"t{i}" for i in range(20)]
    made = Draft(np.arange(n) % 10, [Target(t) for t in many], [Source("s"), Source("z")], [Attack("a"), Attack("b")])
    for target in ("t3", "t7", "t19"):
        made.fool("z", "a", target, mask(n, 1, 2))
    matrix = made.matrix()
    matrix.write(tmp_path / "m.nc")
    again = open_matrix(tmp_path / "m.nc")
    assert again.data.equals(matrix.data)
    names = "predicted", "own_home", "own_clean"
    taken = sum(matrix.data[name].nbytes for name in names)
    assert (tmp_path / "m.nc").stat().st_size < matrix.data.nbytes - taken + 3 * n + 20_000
    filled = scipy.io.netcdf_file(tmp_path / "m.nc", mmap=False).variables["predicted_cell"]
    assert filled.compress == b"source attack target"
    assert filled[:].tolist() == [1 * 2 * 20 + t for t in (3, 7, 19)]


@pytest.mark.parametrize("places", [[-1, 4, 5], [0, 1, 280], [2**31 - 1, 1, 2]])
def test_a_place_outside_the_axes_is_refused(tmp_path: Path, places: list[int]) -> None:
    made = Draft(np.arange(N), [Target(f"t{i}") for i in range(20)], [Source("s"), Source("z")], [Attack("a"), Attack("b")])
    for target in ("t3", "t7", "t19"):
        made.fool("z", "a", target, mask(N, 1, 2))
    made.matrix().write(tmp_path / "m.nc")
    with scipy.io.netcdf_file(tmp_path / "m.nc", "a") as file:
        file.variables["predicted_cell"][:] = places
    with pytest.raises(StoreError, match="no matrix of firedoor"):
        open_matrix(tmp_path / "m.nc")


def test_a_small_file_does_not_ask_for_all_memory(tmp_path: Path) -> None:
    """4,000 x 4,000 x 4,000 cells of one image, of which one is stored: 64 GB, were they unpacked."""
    axes = {axis: [str(i) for i in range(4000)] for axis in ("source", "attack", "target")}
    cells = {"predicted": (("predicted_cell", "example"), np.zeros((1, 1), np.int8))}
    place = ("predicted_cell", np.zeros(1, np.int32), {"compress": "source attack target"})
    data = xr.Dataset(cells, {**axes, "predicted_cell": place}, {"firedoor": "{}", "sha256": ""})
    data.to_netcdf(tmp_path / "m.nc", engine="scipy", format="NETCDF3_64BIT")
    with pytest.raises(StoreError, match="no matrix of firedoor"):
        open_matrix(tmp_path / "m.nc")


@given(NAMES)
def test_any_name_survives(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    file = tmp_path_factory.mktemp("m") / "m.nc"
    matrix = draft(*names).matrix()
    matrix.write(file)
    again = open_matrix(file)
    assert (again.sources, again.attacks, again.targets) == (matrix.sources, matrix.attacks, matrix.targets)
    assert np.array_equal(again.right(names[0], names[1], names[2]), matrix.right(names[0], names[1], names[2]))  # type: ignore[arg-type]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="firedoor run"):
        open_matrix(tmp_path / "m.nc")


def test_what_is_no_matrix_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.nc"
    draft().matrix().write(file)
    whole = file.read_bytes()
    foreign = draft().matrix().data
    contents = [
        b"",
        b"CDF",
        b"no matrix at all",
        bytes(range(256)) * 20,
        b"\x89HDF\r\n\x1a\n" + b"\0" * 200,
        bytes(foreign.to_netcdf(engine="scipy")),
    ]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(StoreError, match="no matrix of firedoor"):
            open_matrix(file)
    for length in range(0, len(whole), 53):
        file.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="no matrix of firedoor"):
            open_matrix(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(StoreError):
        open_matrix(file)


@pytest.mark.filterwarnings("ignore:Cannot close a netcdf_file")  # scipy's, while the error is on its way
def test_damage_in_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Of a header with one byte changed either nothing is read, or a matrix; never another kind of error."""
    file = tmp_path / "m.nc"
    draft().matrix().write(file)
    whole = file.read_bytes()
    for place in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        file.write_bytes(damaged)
        try:
            open_matrix(file)
        except StoreError:
            continue


def test_writing_where_nothing_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        draft().matrix().write(tmp_path / "file" / "m.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------- cells by name


def test_a_cell_is_found_by_its_names_and_a_wrong_one_is_named() -> None:
    matrix = draft().matrix()
    assert matrix.right("s", "a", "t").tolist() == (~mask(N, 1, 2)).astype(float).tolist()  # type: ignore[union-attr]
    assert matrix.right("s", "a", "r").tolist() == pytest.approx([1 - (i % 4) / 3 for i in range(N)])  # type: ignore[union-attr]
    assert matrix.right("itself", "a", "r") is None, "not run"
    assert matrix.right("s", "ba", "t") is None, "one answer is missing"
    for names, axis in ((("S", "a", "t"), "source"), (("s", "A", "t"), "attack"), (("s", "a", "tt"), "target")):
        with pytest.raises(SpecError, match=f"no {axis}.*Did you mean"):
            matrix.right(*names)


def test_cells_stay_with_their_names_when_the_axes_are_turned() -> None:
    matrix = draft().matrix()
    turned = Matrix(
        matrix.data.isel(source=slice(None, None, -1), attack=slice(None, None, -1), target=slice(None, None, -1)), matrix.meta
    )
    assert turned.targets == matrix.targets[::-1]
    for cell in (("s", "a", "t"), ("s", "a", "r"), ("itself", "a", "t")):
        assert np.array_equal(turned.right(*cell), matrix.right(*cell))  # type: ignore[arg-type]
    for name in ("t", "r"):
        assert np.array_equal(turned.clean(name), matrix.clean(name))
        assert np.array_equal(turned.noise(name), matrix.noise(name))
    home, again = matrix.home("s", "a", "t"), turned.home("s", "a", "t")
    assert home is not None
    assert again is not None
    assert np.array_equal(home, again)


def test_a_reason_is_looked_up_from_the_cell_to_the_whole_target() -> None:
    made = draft()
    made.reasons = {"s|a|t": "one cell", "s|a|*": "a row", "s|*|t": "a source", "*|*|t": "a target"}
    matrix = made.matrix()
    found = [
        matrix.reason(*c) for c in (("s", "a", "t"), ("s", "a", "r"), ("s", "ba", "t"), ("itself", "a", "t"), ("itself", "a", "r"))
    ]
    assert found == ["one cell", "a row", "a source", "a target", "not part of the study"]
