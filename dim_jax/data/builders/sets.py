"""The five builders, and what they share: which splits, how many files, who writes them, what is said of them.

Each has a config of TFDS for every kind of row: `dim_edit/edit`, `sharegpt4o_image/caption`. The order is that of the source, so that row i
of a split is example i of the source, and a plan made for one is that of the other.
"""

from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from rich.console import Console
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from dim_jax.data.builders.shards import Rows, Shard, Written, estimate, features_of, open_rows, write_here, write_on_beam
from dim_jax.data.builders.statistics import Tally
from dim_jax.data.pairs import PAIR_SPLITS, SPLITS, Pairs, PairSplit
from dim_jax.data.sources import Kind
from dim_jax.data.sources.dim import Dim
from dim_jax.data.sources.entry import ExampleDataset
from dim_jax.data.sources.sharegpt4o import ShareGPT4o
from dim_jax.data.sources.ultra_edit import UltraEdit as UltraEditFiles
from dim_jax.disk import check_space
from dim_jax.errors import InputError

SUMS = "SHA256SUMS"
DESCRIBED = {"edit": "Edits: a source, an instruction, a target.", "caption": "Pictures and their captions."}


def configs(*kinds: Kind) -> list[Any]:
    return [tfds.core.BuilderConfig(name=kind, description=DESCRIBED[kind]) for kind in kinds]


class Builder(FileReaderBuilder, skip_registration=True):
    """What the five have in common; `download_and_prepare` takes the source as `manual_dir` of a `tfds.download.DownloadConfig`.

    Of that config `num_shards`, `max_shard_size`, `beam_runner` and `beam_options` count here.

    Args:
        index: the folder that `dim index --into` wrote to, where the source's archives are not indexed beside them.
        workers: processes that write; 0: this one.
        console: where a bar is shown, if it is a terminal.
        kwargs: `data_dir`, `config` and others of every builder of TFDS.

    Raises:
        InputError: in `download_and_prepare`: the source is of another layout, has no rows of the kind, or one that cannot be used; or
            there is too little space.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "The first."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give the folder of the data set as it was downloaded (docs/data.md) as manual_dir."
    LAYOUT: ClassVar[type]  # of the source
    HOMEPAGE: ClassVar[str] = ""
    BLUEPRINTS: ClassVar[bool] = False  # whether its edits have blueprints
    RULED: ClassVar[bool] = False  # whether its edits are of named rules

    def __init__(self, *, index: str = "", workers: int = 0, console: Console | None = None, file_format: Any = None, **kwargs: Any):
        self._index, self._workers, self._console = index, workers, console
        super().__init__(file_format=file_format or tfds.core.FileFormat.ARRAY_RECORD, **kwargs)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features_of(self._kind, **self._optional),
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    @property
    def _kind(self) -> Kind:
        return "edit" if self.builder_config_name == "edit" else "caption"

    @property
    def _optional(self) -> dict[str, bool]:
        edit = self._kind == "edit"
        return {"blueprint": edit and self.BLUEPRINTS, "ruled": edit and self.RULED}

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        info: Any = self.info
        if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise InputError(f"{self.name} is written as array_record, not as {info.file_format.value}. Leave out file_format.")
        folder, size, shards = Path(self.data_dir), 0, dict[PairSplit, list[Shard]]()
        for split, rows in self._splits(str(dl_manager.manual_dir)).items():
            found = estimate(rows)
            number = download_config.num_shards or -(-found // download_config.max_shard_size)
            shards[split] = _cut(rows, number, self._get_filename_template(split))
            size += found
        check_space(folder.parent, size, what=str(folder), remedy="Free some space, or choose another data_dir.")
        every = [shard for group in shards.values() for shard in group]
        if download_config.beam_runner or download_config.beam_options:
            written = write_on_beam(every, download_config.beam_runner, download_config.beam_options)
        else:
            written = write_here(every, self._workers, self._console)
        (folder / SUMS).write_text("".join(_line(shard, one) for shard, one in zip(every, written, strict=True)))
        done = {split: [one for shard, one in zip(every, written, strict=True) if shard.rows.split == split] for split in shards}
        info.set_splits(tfds.core.SplitDict([self._split_info(split, group) for split, group in done.items()]))
        info.metadata["statistics"] = {split: sum((one.tally for one in group), Tally()).report() for split, group in done.items()}

    def _split_info(self, split: str, done: list[Written]) -> Any:
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[one.rows for one in done],
            num_bytes=sum(one.size for one in done),
            filename_template=self._get_filename_template(split),
        )

    def _splits(self, source: str) -> dict[PairSplit, Rows]:
        """The splits that have rows."""

        def rows(split: PairSplit) -> Rows:
            return Rows(source, self._kind, split, self._index, **self._optional)

        train = open_rows(rows("train"))
        layout = train.layout if isinstance(train, ExampleDataset) else train
        if not isinstance(layout, self.LAYOUT):
            raise InputError(f"{source}: is no folder of {self.name}. Give the one that it was downloaded to, as in docs/data.md.")
        splits = PAIR_SPLITS if isinstance(train, Pairs) and self._kind == "edit" else SPLITS
        return {split: rows(split) for split in splits if not isinstance(train, Pairs) or len(Pairs(source, split, self._kind))}


def _cut(rows: Rows, number: int, template: Any) -> list[Shard]:
    """A split as `number` shards of nearly equal length; fewer, if there are fewer rows."""
    count = len(open_rows(rows))
    number = min(count, number)
    ends = [count * part // number for part in range(number + 1)]
    paths = [str(template.sharded_filepath(shard_index=part, num_shards=number)) for part in range(number)]
    return [Shard(rows, start, stop, path) for start, stop, path in zip(ends[:-1], ends[1:], paths, strict=True)]


def _line(shard: Shard, written: Written) -> str:
    """As `sha256sum` writes and checks it."""
    return f"{written.sha256}  {Path(shard.path).name}\n"


class DimT2i(Builder):
    """DIM-T2I of Draw-In-Mind: pictures with long captions along many dimensions."""

    BUILDER_CONFIGS: ClassVar = configs("caption")
    LAYOUT = Dim
    HOMEPAGE = "https://github.com/showlab/DIM"


class DimEdit(Builder):
    """DIM-Edit of Draw-In-Mind: edits, each with a blueprint that a designer wrote."""

    BUILDER_CONFIGS: ClassVar = configs("edit")
    LAYOUT, BLUEPRINTS = Dim, True
    HOMEPAGE = "https://github.com/showlab/DIM"


class UltraEdit(Builder):
    """UltraEdit: edits by instruction, at scale."""

    BUILDER_CONFIGS: ClassVar = configs("edit")
    LAYOUT = UltraEditFiles
    HOMEPAGE = "https://huggingface.co/datasets/BleachNick/UltraEdit"


class Sharegpt4oImage(Builder):
    """ShareGPT-4o-Image: edits and pictures from text, painted by GPT-4o."""

    BUILDER_CONFIGS: ClassVar = configs("edit", "caption")
    LAYOUT = ShareGPT4o
    HOMEPAGE = "https://huggingface.co/datasets/FreedomIntelligence/ShareGPT-4o-Image"


class Emoji(Builder):
    """Emoji of four drawn sets, as `dim build-data emoji` makes them: edits by rule with instructions and blueprints, and captions."""

    BUILDER_CONFIGS: ClassVar = configs("edit", "caption")
    LAYOUT, BLUEPRINTS, RULED = Pairs, True, True


SETS: dict[str, type[Builder]] = {one.name: one for one in (DimT2i, DimEdit, UltraEdit, Sharegpt4oImage, Emoji)}
