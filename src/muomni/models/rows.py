"""A decoder that reads and writes all ids of a token space: a text model and new rows for special and media
tokens.

The new rows are parameters of their own (`new_embed`, `new_head`), so the base stays what it is: the scores
of text ids keep all their bits, optimiser state is that of the new rows alone, and the rows are what is
saved. A folder of rows names the base and the codecs by their digests and does not hold them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from muomni import files
from muomni.errors import CheckpointError, ConfigError
from muomni.models import finite, lora, pretrained, reference
from muomni.models.causal import CausalLM, Read
from muomni.models.codecs import open_codec
from muomni.models.decoder import Decoder
from muomni.nn.grown import GrownEmbedding
from muomni.nn.head import Ranges, TableHead, joined
from muomni.tokens import uti
from muomni.tokens.bpe import Tokenizer
from muomni.tokens.codec import Codec
from muomni.tokens.grammar import union
from muomni.tokens.space import TOKEN_SPACE, TokenSpace
from muomni.tokens.unified import UnifiedTokenizer

ROWS, NOTE = "trainable_rows.safetensors", "trainable_rows.json"
SPACE_HASH = "token_space"  # in the metadata of the rows' file: the hash of the space that they are of
SOURCE_ROWS = "trainable_rows.pt"  # another project's
THINKER, ADAPTER = (
    "thinker",
    "lora",
)  # within a folder of rows: a base that was trained whole, or an adapter on its base
SPREAD = 0.02  # of new rows around the mean of the old ones, in their deviations. Source: reference B43
NAMES = ("new_embed", "new_head")


class TokenModel(CausalLM):
    """A decoder with new rows for the ids of a token space that are no text.

    A row of one stream is ids (B, T); a space whose codec lays its books side by side has grids (B, K, T).
    The embedding of a column is then the sum over its streams, and each stream is scored by the one table, so
    that a book is told from another by its region of ids alone.
    """

    def __init__(self, decoder: Decoder, space: TokenSpace) -> None:
        super().__init__()
        if space.text_size > decoder.config.vocab_size:
            raise CheckpointError(
                f"token space: text has {space.text_size} ids, the language model only {decoder.config.vocab_size} rows",
                hint="make the space with the tokenizer of this model",
            )
        decoder.grow(len(space.new_rows), space.text_size, space.streams)
        self.decoder, self.space = decoder, space

    @property
    def ctx_len(self) -> int:  # type: ignore[override]
        """Longest sequence, in positions."""
        return self.decoder.ctx_len

    @property
    def head(self) -> TableHead:  # type: ignore[override]
        """Scores of all ids of the space."""
        return self.decoder.head

    @property
    def new_embed(self) -> nn.Parameter:
        """(R, D) embeddings of the ids `space.new_rows`."""
        return self._embedding.new_embed

    @property
    def new_head(self) -> nn.Parameter:
        """(R, D) output rows of the same ids."""
        assert self.decoder.grown_head is not None
        return self.decoder.grown_head.new_head

    @property
    def _embedding(self) -> GrownEmbedding:
        assert self.decoder.grown_embed is not None
        return self.decoder.grown_embed

    @torch.no_grad()
    def start(
        self,
        generator: torch.Generator,
        spread: float = SPREAD,
        vectors: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Begin the new rows at the mean of the text's, each a little off it.

        Takes   generator on the CPU; spread: their deviation, as a share of the text rows' own in each
                dimension; vectors: by modality the tables of `Codec.code_vectors`. Rows of codes that lie
                near each other then begin near each other; else each goes its own way.
        """
        first = self.space.text_size
        for rows, table in (
            (self.new_embed, self.decoder.table.weight),
            (self.new_head, self.head.tables[0]),
        ):
            text = table[:first].float()
            off_RD = torch.randn(rows.shape, generator=generator)
            for modality, tables in (vectors or {}).items():
                for book, table_NE in zip(self.space.books(modality), tables):
                    off_RD[book.start - first : book.end + 1 - first] = _projected(
                        table_NE, off_RD.shape[1], generator
                    )
            rows.copy_(text.mean(0) + spread * text.std(0, correction=0) * off_RD.to(rows.device))

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (B, T), or (B, K, T), int64 -> (B, T, D)."""
        if ids.ndim == 2:
            return self.decoder.embed(ids)
        x_BKTD = self.decoder.embed(ids)
        is_silent_BKT = ids == self.space.pad
        is_silent_BKT[:, 0] = False  # a column of pads alone is padding, which is read as its pad
        return x_BKTD.masked_fill(is_silent_BKT[..., None], 0.0).sum(1)

    def hidden(self, x_BTD: Tensor, **how: Any) -> Tensor:
        """States (B, T, D); takes what the decoder's `hidden` does."""
        return self.decoder.hidden(x_BTD, **how)

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache."""
        return self.decoder.new_cache(batch, capacity)

    def reading(self, legal: Sequence[Ranges | None] | None = None) -> Read:
        """By the decoder's stepper, which scores what is legal in any stream once."""
        if self.space.streams == 1:
            return self.decoder.reading(legal)
        by_stream = [None] * self.space.streams if legal is None else list(legal)
        everything = (range(self.space.size),)
        wanted = union([tuple(everything if ids is None else ids) for ids in by_stream])
        read_wanted = self.decoder.reading([wanted])
        columns = [
            [_within(wanted, each) for each in (everything if ids is None else ids)] for ids in by_stream
        ]

        def read(x_BTD: Tensor, cache: Any, keep_BT: Tensor | None = None) -> list[Tensor]:
            (scores_BV,) = read_wanted(x_BTD, cache, keep_BT)
            return [joined([scores_BV[:, each.start : each.stop] for each in parts]) for parts in columns]

        return read


def _projected(table_NE: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Vectors in random directions of another width (N, width), around 0 with deviation 1 over all numbers."""
    table_NE = table_NE.float().cpu()
    moved_ND = (table_NE - table_NE.mean(0)) @ torch.randn(table_NE.shape[1], width, generator=generator)
    return moved_ND / moved_ND.std(correction=0).clamp(min=1e-6)


def _within(wanted: Sequence[range], ids: range) -> range:
    """Where the scores of ids stand among those of ordered ranges, one of which holds them all."""
    before = 0
    for each in wanted:
        if each.start <= ids.start and ids.stop <= each.stop:
            return range(before + ids.start - each.start, before + ids.stop - each.start)
        before += len(each)
    raise AssertionError(f"{ids} is in none of {wanted}")


# --- folders of rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Note:
    """What a folder of rows says of itself (trainable_rows.json).

    row_start, row_end  its ids, the last one not included
    base_llm    what people call the base; has_lm_head: the base has an output table of its own
    token_space hash of the space beside it
    base        how the base is found, and its digest (`models.reference`)
    codecs      the same of each codec, by modality
    longest     by what is written ("audio", "text"): frames or tokens of the longest target that was trained
                on
    writing     by medium, how its codes are drawn (`infer.sampling.MediaSampling`); greedily where it is not
                named
    drop_prompts  the share of what it learned without the words that ask for it
    reads       media whose words it learned to write
    """

    row_start: int
    row_end: int
    base_llm: str
    has_lm_head: bool
    token_space: str
    base: dict[str, Any]
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    writing: dict[str, dict[str, Any]] = field(default_factory=dict)
    drop_prompts: float = 0.0
    reads: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Note:
        """The note of a folder.

        Raises  CheckpointError where it is missing, torn or of another shape.
        """
        path = folder / NOTE
        content = files.read_stored(path, dict, hint="copy the folder of rows again")
        try:
            return cls(**content)
        except TypeError as error:
            raise CheckpointError(
                f"{path}: expected what a folder of rows says, got other keys: {error}"
            ) from error


def save(
    model: TokenModel,
    folder: Path,
    *,
    base: Mapping[str, Any],
    codecs: Mapping[str, Mapping[str, Any]],
    longest: Mapping[str, int] | None = None,
    writing: Mapping[str, Mapping[str, Any]] | None = None,
    drop_prompts: float = 0.0,
    reads: Sequence[str] = (),
) -> None:
    """Write the new rows, their note and the token space: all that is trained where base and codecs are
    frozen.

    Takes   base, codecs: what `models.reference.NetworkReference.describe` says of each; the rest: see Note.
    """
    new = model.space.new_rows
    note = Note(
        new.start,
        new.stop,
        str(base["name"]),
        not model.decoder.config.tied,
        model.space.hash,
        dict(base),
        {name: dict(each) for name, each in codecs.items()},
        dict(longest or {}),
        {kind: dict(how) for kind, how in (writing or {}).items()},
        drop_prompts,
        list(reads),
    )
    tensors = {name: getattr(model, name).detach().float().cpu().contiguous() for name in NAMES}
    folder = Path(folder)
    # One key alone: safetensors writes several in another order in each process, and equal runs would leave other
    # bytes.
    files.write_bytes(folder / ROWS, to_safetensors(tensors, metadata={SPACE_HASH: model.space.hash}))
    files.write_json(folder / NOTE, asdict(note))
    model.space.save(folder)


@torch.no_grad()
def load_rows(model: TokenModel, folder: Path, *, base_digest: str) -> Note:
    """Fill a model's new rows from a folder.

    Takes   base_digest: of the base that the model stands on (`models.pretrained.digest`).
    Raises  TokenSpaceError where the folder's space is another one, or its note or its rows are of another
            (rows that were written before their file named a space are held to the note alone);
            CheckpointError where its base, range or shapes are others, or a number is not finite.
    """
    folder = Path(folder)
    model.space.require(TokenSpace.load(folder), str(folder / TOKEN_SPACE))
    note, new = Note.read(folder), model.space.new_rows
    model.space.require_hash(note.token_space, str(folder / NOTE))
    tensors, metadata = _read(folder)
    if SPACE_HASH in metadata:
        model.space.require_hash(metadata[SPACE_HASH], str(folder / ROWS))
    if note.base.get("digest") != base_digest:
        raise CheckpointError(
            f"{folder}: its rows were trained on base {note.base_llm}: expected digest {str(note.base.get('digest'))[:12]}, "
            f"got {base_digest[:12]}",
            hint="open them on the base that they were trained on",
        )
    if (note.row_start, note.row_end) != (new.start, new.stop):
        raise CheckpointError(
            f"{folder / NOTE}: expected rows {new.start}..{new.stop}, got {note.row_start}..{note.row_end}"
        )
    _fill(model, tensors, str(folder / ROWS))
    return note


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a folder's rows by name, and what their file says beside them."""
    try:
        with safe_open(folder / ROWS, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            return tensors, dict(stored.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / ROWS}: missing or torn: {error}", hint="copy the folder of rows again"
        ) from error


def base_of(folder: Path) -> Path:
    """The folder of the base of a folder of rows: within it, or found again and compared by its digest.

    Raises  CheckpointError where it lies nowhere, or is another.
    """
    inside = Path(folder) / THINKER
    return inside if inside.is_dir() else reference.find(Note.read(folder).base, Path(folder))[1]


def open_folder(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = torch.float32
) -> tuple[TokenModel, Tokenizer, Note]:
    """The model of a folder of rows on its base, in evaluation mode, and the base's tokenizer.

    An adapter (`lora/`) is merged into the base; a base that was trained whole lies in `thinker/`.

    Takes   dtype of the base, None: as stored.
    Raises  CheckpointError where base or rows are missing, torn or others; TokenSpaceError as `load_rows`, or
            where the tokenizer is not the space's.
    """
    folder = Path(folder)
    space = TokenSpace.load(folder)
    place = base_of(folder)
    tokenizer = pretrained.open_tokenizer(place)
    UnifiedTokenizer(tokenizer, space)  # refuses another tokenizer
    decoder = pretrained.open_decoder(place, device=device, dtype=dtype)
    if (folder / ADAPTER).is_dir():
        lora.load(decoder, folder / ADAPTER)
        decoder = lora.merged(decoder)
    model = TokenModel(decoder, space).eval()
    note = load_rows(model, folder, base_digest=pretrained.digest(place))
    finite.came_from(model, folder)
    return model, tokenizer, note


def digest(folder: Path) -> str:
    """sha256 that names a folder of rows: its rows, its adapter where it has one, and on what they stand."""
    folder = Path(folder)
    parts = [
        Note.read(folder).base.get("digest"),
        files.sha256_once(folder / ROWS),
        TokenSpace.load(folder).hash,
    ]
    adapter = folder / ADAPTER / lora.WEIGHTS
    return files.sha256_json([*parts, files.sha256_once(adapter)] if adapter.is_file() else parts)


def changed(model: TokenModel, folder: Path) -> list[str]:
    """The new rows that are others in a folder than in the model.

    Raises  CheckpointError where the folder's file is missing or torn.
    """
    tensors, _ = _read(Path(folder))
    return [
        name
        for name in NAMES
        if name not in tensors or not torch.equal(tensors[name], getattr(model, name).detach().float().cpu())
    ]


def open_codecs(folder: Path, *, device: torch.device | str = "cpu") -> list[Codec]:
    """The codecs that a folder of rows names, found again.

    Raises  CheckpointError where one lies nowhere or is another; TokenSpaceError where it is not the space's.
    """
    folder = Path(folder)
    note, space = Note.read(folder), TokenSpace.load(folder)
    codecs = []
    for entry in space.codecs:
        if entry.modality not in note.codecs:
            raise CheckpointError(
                f"{folder / NOTE}: it names no {entry.modality} codec, which its token space has"
            )
        place = reference.find(note.codecs[entry.modality], folder)[1]
        codecs.append(open_codec(place, entry.codebooks, device))
    return codecs


def _fill(model: TokenModel, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors by name into the new rows; raises CheckpointError for other names, shapes or numbers."""
    shapes = {name: tuple(getattr(model, name).shape) for name in NAMES}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        raise CheckpointError(
            f"{where}: expected {shapes}, got {found}",
            hint="these are the rows of another token space or width",
        )
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinite values", hint="take an earlier checkpoint"
            )
        getattr(model, name).copy_(tensor)


@torch.no_grad()
def as_decoder(model: TokenModel) -> Decoder:
    """A plain decoder of all ids of the space: the rows stand behind the text's in both its tables, in the
    base's number format, and rows of the base that are no ids are left out.

    Its tables are two, also where the base has one: new rows of the input are not those of the output.
    Raises  ConfigError for a space whose rows are several streams.
    """
    if model.space.streams > 1:
        raise ConfigError(
            f"a row of this space is {model.space.streams} streams of ids, which no plain language model reads",
            hint="layout interleaved has one",
        )
    decoder = model.decoder
    config = decoder.config.model_copy(update={"vocab_size": model.space.size, "tied": False})
    state = {name: each for name, each in decoder.state_dict().items() if not name.startswith("grown_")}
    text_VD = decoder.table.weight[: model.space.text_size]
    state["model.embed_tokens.weight"] = torch.cat([text_VD, model.new_embed.to(text_VD.dtype)])
    state["lm_head.weight"] = torch.cat([table.to(text_VD.dtype) for table in model.head.tables])
    with torch.device("meta"):
        out = Decoder(config)
    out.load_state_dict(state, assign=True)
    return out.requires_grad_(False).eval()


# --- the source's layout ----------------------------------------------------------------------------------------------


def export_source(
    model: TokenModel, folder: Path, *, base_llm: str, created_utc: str, dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write trainable_rows.pt, trainable_rows.json and a token_space.json of uti_v1, as the source's
    checkpoints have them.

    Raises  TokenSpaceError for a layout that uti_v1 does not have.
    """
    new, folder = model.space.new_rows, Path(folder)
    rows = {name: getattr(model, name).detach().cpu().to(dtype) for name in NAMES}
    ids = {"row_start": new.start, "row_end": new.stop, "base_llm": base_llm}
    stream = io.BytesIO()
    content = {
        **ids,
        "embeddings": rows["new_embed"],
        "lm_head": rows["new_head"],
        "dtype": str(dtype).removeprefix("torch."),
    }
    torch.save(content, stream)
    uti.write(model.space, folder, created_utc=created_utc, base_text_model=base_llm)
    files.write_bytes(folder / SOURCE_ROWS, stream.getvalue())
    files.write_json(folder / NOTE, {**ids, "has_lm_head": True})


@torch.no_grad()
def import_source(model: TokenModel, folder: Path, *, base_llm: str) -> None:
    """Fill a model's new rows from a checkpoint in the source's layout; nothing but tensors is unpickled.

    A checkpoint without `lm_head` is of a base whose tables are one: its rows serve both sides.

    Takes   base_llm: the base that the model stands on, as the checkpoint must call it.
    Raises  TokenSpaceError where its token space is not the model's; CheckpointError where it is torn, holds
            anything but tensors and plain values, or base, range or shapes are others.
    """
    folder = Path(folder)
    path = folder / SOURCE_ROWS
    uti.read(folder / TOKEN_SPACE, tokenizer=model.space.tokenizer, codecs=model.space.codecs)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        start, end, name = int(content["row_start"]), int(content["row_end"]), str(content["base_llm"])
        embed, head = content["embeddings"], content.get("lm_head")
    except Exception as error:  # a foreign pickle fails in many ways
        raise CheckpointError(
            f"{path}: missing, torn or unsafe: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    new = model.space.new_rows
    if name != base_llm:
        raise CheckpointError(
            f"{path}: expected rows for base {base_llm}, got {name}",
            hint="open the base that they were trained on",
        )
    # The range's end is counted in by some writers and left out by others; the number of rows tells which.
    if start != new.start or end not in (new.stop, new.stop - 1):
        raise CheckpointError(f"{path}: expected rows {new.start}..{new.stop}, got {start}..{end}")
    if not isinstance(embed, Tensor) or not isinstance(head, Tensor | None):
        raise CheckpointError(
            f"{path}: expected tensors embeddings and lm_head, got {type(embed).__name__} and {type(head).__name__}"
        )
    _fill(
        model, {"new_embed": embed.float(), "new_head": (embed if head is None else head).float()}, str(path)
    )
