"""What every data set promises, asked of those that need no file; Digits and Shapes in particular."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from firedoor import catalogue, data, spec
from firedoor.data.digits import Digits
from firedoor.data.shapes import Shapes
from firedoor.data.splits import PARTS, Splits
from firedoor.data.subset import Subset
from firedoor.errors import DataError, MissingData, SpecError
from firedoor.protocols import Dataset

SMALL = Splits(train=40, development=20, evaluation=30)
SETS = [Digits(), Digits(Splits("disjoint")), Shapes(splits=SMALL), Shapes(size=8, splits=replace(SMALL, training="disjoint"))]


@pytest.mark.parametrize("recipe", SETS, ids=str)
def test_the_promises_of_a_data_set(recipe: Dataset) -> None:
    ids: dict[str, set[str]] = {}
    pixels: dict[str, set[bytes]] = {}
    for part in PARTS:
        split = recipe.split(part)
        assert split.x.shape == (len(split), *recipe.shape)
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert split.y.shape == (len(split),)
        assert float(split.x.min()) >= 0
        assert float(split.x.max()) <= 1
        assert set(split.y.tolist()) <= set(range(len(recipe.classes)))
        if recipe.eight_bit:
            assert torch.equal((split.x * 255).round() / 255, split.x)
        ids[part], pixels[part] = set(split.ids), {row.numpy().tobytes() for row in split.x}
        assert len(ids[part]) == len(pixels[part]) == len(split)
        assert recipe.split(part).x is split.x, "a repeated call is free"
    for part in ("source", "target", "development"):
        assert not pixels[part] & pixels["evaluation"]
        assert not ids[part] & ids["evaluation"]
    assert not pixels["target"] & pixels["development"]
    same = recipe.splits.training == "same"  # type: ignore[attr-defined]
    assert (pixels["source"] & pixels["target"]) == (pixels["source"] if same else set())
    assert len(set(recipe.classes)) == len(recipe.classes)
    assert len(recipe.digest()) == 64


def test_digits_are_those_of_scikit_learn_in_8_bits() -> None:
    images, labels = load_digits(return_X_y=True)
    split = Digits().split("evaluation")
    for row in (0, 7, 399):
        i = int(split.ids[row].removeprefix("digits/"))
        levels = (split.x[row] * 255).round().reshape(-1).numpy()
        assert np.array_equal(levels, np.rint(images[i] / 16 * 255))
        assert int(split.y[row]) == labels[i]
    assert [len(Digits().split(p)) for p in PARTS] == [1300, 1300, 97, 400]
    assert len(torch.unique(Digits().split("source").x)) == 17


def test_an_image_of_shapes_depends_on_its_id_alone() -> None:
    small, large = Shapes(splits=SMALL), Shapes(splits=Splits(train=300, development=20, evaluation=60))
    for part in ("target", "evaluation"):
        n = len(small.split(part))
        assert small.split(part).ids == large.split(part).ids[:n]
        assert torch.equal(small.split(part).x, large.split(part).x[:n])
    other_seed = Shapes(splits=replace(SMALL, seed=1))
    assert not torch.equal(small.split("evaluation").x, other_seed.split("evaluation").x)


def test_another_training_set_of_shapes_keeps_evaluation() -> None:
    one, two = Shapes(splits=SMALL), Shapes(training_set=1, splits=SMALL)
    assert torch.equal(one.split("evaluation").x, two.split("evaluation").x)
    assert one.split("evaluation").ids == two.split("evaluation").ids
    assert not set(one.split("target").ids) & set(two.split("target").ids)
    distance = (one.split("target").x - two.split("target").x).flatten(1).norm(dim=1)
    assert float(distance.min()) > 1, "independent draws, not small changes"
    assert one.digest() != two.digest()


def test_shapes_have_equal_class_frequencies_and_a_shape_to_see() -> None:
    split = Shapes(splits=SMALL).split("target")
    assert torch.bincount(split.y, minlength=10).tolist() == [4] * 10
    again = Shapes(size=16, splits=SMALL).split("target")
    assert again.x.shape == (40, 3, 16, 16)
    assert float(split.x.std()) > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shapes(size=4), "size must be 8 to 512"),
        (lambda: Shapes(training_set=-1), "training_set must be"),
        (lambda: Digits().split("test"), "part must be one of source, target, development, evaluation"),
        (lambda: Digits().split("tagret"), "Did you mean 'target'"),
    ],
)
def test_bad_requests_say_what_was_needed(make: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()  # type: ignore[operator]


def test_a_recipe_is_frozen_and_its_fingerprint_covers_the_splits_but_not_the_root() -> None:
    with pytest.raises(FrozenInstanceError):
        Digits().splits = SMALL  # type: ignore[misc]
    assert spec.fingerprint(Digits()) != spec.fingerprint(Digits(Splits("disjoint")))
    built = spec.build(Digits, {"splits": {"training": "disjoint", "train": 500}}, "data", {}, {})
    assert built == Digits(Splits("disjoint", train=500))
    assert len(built.split("source")) == 500


def test_the_room_exports_its_entries_by_name() -> None:
    names = [entry.name for entry in catalogue.entries("data")]
    assert set(names) >= {"Arrays", "Cifar10", "Digits", "FashionMNIST", "Idx", "ImageFolders", "Shapes"}
    assert data.Digits is Digits
    assert set(names) <= set(dir(data))
    with pytest.raises(AttributeError, match="Did you mean 'Digits'"):
        data.Digit  # noqa: B018
    for entry in catalogue.entries("data"):
        assert entry.reference
        assert entry.family
        assert entry.year


def test_naming_the_room_imports_no_torch() -> None:
    code = "import sys, firedoor.data, firedoor.architectures as a; dir(a); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_missing_data_says_where_it_looked_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("FIREDOOR_DATA", raising=False)
    with pytest.raises(MissingData, match=r"neither `root` nor FIREDOOR_DATA is set.*cifar-10-binary"):
        data.Cifar10().split("source")
    monkeypatch.setenv("FIREDOOR_DATA", str(tmp_path))
    for recipe, how in ((data.Idx(), "four IDX files"), (data.ImageFolders("mine"), "class"), (data.Arrays(), "savez")):
        with pytest.raises(MissingData, match=f"{type(recipe).__name__} needs .*{tmp_path}.*{how}"):
            recipe.digest()
    with pytest.raises(MissingData, match="apt-get install dataset-fashion-mnist"):
        data.FashionMNIST(root=str(tmp_path)).digest()


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "/abs", ".hidden", "a\\b", "x\n"])
def test_names_from_a_study_are_never_paths(name: str) -> None:
    for cls in (data.Idx, data.ImageFolders):
        with pytest.raises(SpecError, match="one plain file or folder name"):
            cls(name)


def test_a_subset_is_the_first_share_of_each_training_part_and_nothing_else_changes() -> None:
    whole = Digits(Splits("disjoint"))
    tenth = Subset(whole, 0.1)
    for part in ("source", "target"):
        n = round(0.1 * len(whole.split(part)))
        assert tenth.split(part).ids == whole.split(part).ids[:n]
        assert torch.equal(tenth.split(part).x, whole.split(part).x[:n])
        assert tenth.split(part) is tenth.split(part), "a repeated call is free"
    assert not set(tenth.split("source").ids) & set(whole.split("target").ids)
    for part in ("development", "evaluation"):
        assert tenth.split(part) is whole.split(part)
    assert (tenth.classes, tenth.shape, tenth.eight_bit) == (whole.classes, whole.shape, whole.eight_bit)
    assert len({tenth.digest(), Subset(whole, 0.2).digest(), whole.digest(), Subset(Digits(), 0.1).digest()}) == 4
    assert spec.from_value(Dataset, spec.to_dict(tenth), "data", {}, {}) == tenth


def test_a_subset_refuses_what_leaves_nothing() -> None:
    for share in (0, -1, 1.5, True, "half"):
        with pytest.raises(SpecError, match=r"share must be in \(0, 1\], got"):
            Subset(Digits(), share)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"needs 2 images or more, got 1 of 1300\. Raise share"):
        Subset(Digits(), 0.001).split("target")


def test_a_subset_leaves_out_classes_of_what_is_evaluated_only() -> None:
    whole = Digits()
    some = Subset(whole, 1.0, ("3", "8"))
    assert whole.classes[3] == "3"
    for part in ("development", "evaluation"):
        kept = [i for i, y in enumerate(whole.split(part).y.tolist()) if y not in (3, 8)]
        assert some.split(part).ids == tuple(whole.split(part).ids[i] for i in kept)
        assert torch.equal(some.split(part).x, whole.split(part).x[kept])
        assert torch.equal(some.split(part).y, whole.split(part).y[kept])
    assert torch.equal(some.split("target").y, whole.split("target").y)
    assert some.digest() != Subset(whole, 1.0).digest()
    with pytest.raises(SpecError, match="without must name classes of the data, got 'deer'"):
        Subset(whole, 1.0, ("deer",)).split("evaluation")
    with pytest.raises(DataError, match="evaluation needs an image, got none"):
        Subset(whole, 1.0, whole.classes).split("evaluation")
