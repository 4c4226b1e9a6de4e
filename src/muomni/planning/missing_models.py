"""Missing pretrained networks: random networks with a few blocks, or narrow codecs, stand in for them in a
dry run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from muomni import files
from muomni.data.sample import Sample
from muomni.errors import ConfigError
from muomni.execution.recipe import Recipe
from muomni.models import pretrained, siglip, store
from muomni.models.decoder import Decoder, DecoderConfig
from muomni.models.reference import NetworkReference
from muomni.planning import building, published_sizes
from muomni.planning.published_sizes import CodecSizes, HiggsSizes, Sizes, Tower

SETTINGS = ("llm", "vision_tower", "image_codec", "audio_codec", "base", "codec")  # that name them
KNOWN = (
    "Qwen3, SigLIP 2, EnCodec at 24 kHz, Janus-Pro's quantiser, Higgs Audio v2 and its codes "
    "(planning/published_sizes.py)"
)
CUT_VOCABULARY = 4096
LEARNED_FROM = 2000  # samples, for a vocabulary that stands in
MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)  # of Qwen3's
OF_HIGGS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO_OUT|>",
)


@dataclass(frozen=True)
class MissingModel:
    """A network that is not here, as settings name it, and its published sizes."""

    base: NetworkReference
    sizes: Sizes

    @property
    def layers(self) -> int:
        """Its blocks; 1 where it is not drawn out."""
        return self.sizes.layers

    @property
    def is_codec(self) -> bool:
        """Whether it makes the ids of a medium, before the first step."""
        return isinstance(self.sizes, CodecSizes)

    @property
    def words_left_out(self) -> int:
        """Parameters by which its tables of words are larger than those of what stands in."""
        if not isinstance(self.sizes, DecoderConfig):
            return 0
        return (1 if self.sizes.tied else 2) * (self.sizes.vocab_size - CUT_VOCABULARY) * self.sizes.width

    def number_format(self, device: str) -> torch.dtype:
        """In which a run on `device` (auto: a GPU, for which such networks are planned) holds it."""
        stored = published_sizes.STORED[type(self.sizes)]
        return self.base.dtype_on(torch.device("cpu" if device == "cpu" else "cuda")) or stored


def missing(recipe: Recipe, stage: str, folder: Path) -> dict[str, MissingModel]:
    """The pretrained networks of a stage that are not on this machine, by the setting that names them; the
    hub is not asked.

    Raises  ConfigError for one whose sizes are not known either.
    """
    start = building.start_of(recipe, stage)
    if start is not None and (folder / recipe.stages[stage].needs[0] / "final").is_dir():
        return {}
    settings = recipe.stages[start or stage].settings
    named: dict[str, NetworkReference] = {
        name: getattr(settings, name) for name in SETTINGS if getattr(settings, name, None) is not None
    }
    missing_models = {}
    for name, base in named.items():
        if base.name in settings.needs:
            continue
        try:
            pretrained.locate(base.name, base.revision, recipe.base)
        except ConfigError as error:
            sizes = published_sizes.sizes(base.name)
            if sizes is None:
                raise ConfigError(
                    f"{stage}.{name}: {base.name} is not on this machine, and its sizes are not known here",
                    hint=f"run 'hf download {base.name}', or name a folder that holds it; known are {KNOWN}",
                ) from error
            missing_models[name] = MissingModel(base, sizes)
    return missing_models


def cut(
    missing: Mapping[str, MissingModel],
    blocks: Mapping[str, int],
    samples: Sequence[Sample],
    device: str,
    folder: Path,
) -> dict[str, NetworkReference]:
    """Folders of networks of the real widths, with so many blocks and a small vocabulary learned from the
    samples; and of narrow codecs that make as many codes as the real ones."""
    references = {}
    for name, each in missing.items():
        sizes, place = each.sizes, folder / name
        number_format = each.number_format(device)
        if isinstance(sizes, Tower):
            _tower(sizes._replace(layers=blocks[name]), number_format, place)
        elif isinstance(sizes, CodecSizes):
            _codec(sizes, place)
        elif isinstance(sizes, HiggsSizes):
            _higgs(sizes, blocks[name], number_format, place)
            files.write_text(place / "tokenizer.json", _vocabulary(samples, OF_HIGGS, is_whole=True))
        else:
            config = sizes.model_copy(update={"layers": blocks[name], "vocab_size": CUT_VOCABULARY})
            store.save(Decoder(config).to(number_format), place)
            files.write_text(place / "tokenizer.json", _vocabulary(samples))
        # By its word: this machine may be another than the one that is planned for.
        precision = "bf16" if number_format == torch.bfloat16 else "fp32"
        told = {} if each.is_codec else {"dtype": precision}
        own = {"name": str(place), "revision": None, "subfolder": None, **told}
        references[name] = each.base.model_copy(update=own)
    return references


def _codec(sizes: CodecSizes, place: Path) -> None:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"{sizes.class_name} needs transformers, which is not installed", hint="pip install 'muomni[hf]'"
        ) from error
    made: Any = getattr(transformers, sizes.class_name)
    made(made.config_class(**{**sizes.codes, **sizes.narrow})).save_pretrained(place)


def _tower(sizes: Tower, number_format: torch.dtype, place: Path) -> None:
    try:
        from transformers import SiglipVisionConfig, SiglipVisionModel
    except ImportError as error:
        raise ConfigError(
            "SigLIP needs transformers, which is not installed", hint="pip install 'muomni[hf]'"
        ) from error
    config = SiglipVisionConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        image_size=sizes.size,
        patch_size=sizes.patch,
    )
    network: torch.nn.Module = SiglipVisionModel(config)
    siglip.SiglipTower(network.to(number_format), {}).save(place)


def _higgs(sizes: HiggsSizes, layers: int, number_format: torch.dtype, place: Path) -> None:
    """One with so many blocks and all its tables, whose weights are one number: what an update costs does not depend
    on them, and to draw them takes a minute."""
    try:
        from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration
    except ImportError as error:
        raise ConfigError(
            "Higgs Audio v2 needs a newer transformers than is installed", hint="pip install -U 'muomni[hf]'"
        ) from error
    first = CUT_VOCABULARY - len(OF_HIGGS)  # ids of the marks behind the words
    ids = {mark: first + number for number, mark in enumerate(OF_HIGGS)}
    config = HiggsAudioV2Config(
        **sizes.config,
        num_hidden_layers=layers,
        audio_token_id=ids["<|AUDIO_OUT|>"],
        audio_bos_token_id=ids["<|audio_out_bos|>"],
        audio_delay_token_id=ids["<|reserved_special_token_6|>"],
        pad_token_id=ids["<|end_of_text|>"],
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
    )
    with torch.device("meta"):
        network: Any = HiggsAudioV2ForConditionalGeneration(config, use_text_head=True)
    network = network.to(number_format).to_empty(device="cpu")
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(0.01)
    network.save_pretrained(place)


def _vocabulary(samples: Sequence[Sample], marks: Sequence[str] = MARKS, *, is_whole: bool = False) -> str:
    """A tokenizer.json with marks (Qwen3's) after words learned from samples.

    Takes   is_whole: few texts give fewer words, and the marks are to be the last of CUT_VOCABULARY ids all the same.
    """
    step = max(1, len(samples) // LEARNED_FROM)
    texts = [
        sample.text or " ".join(message.text for message in sample.messages) for sample in samples[::step]
    ]
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=CUT_VOCABULARY - len(marks), initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    lacking = CUT_VOCABULARY - len(marks) - library.get_vocab_size() if is_whole else 0
    spare = [f"<|spare_{number}|>" for number in range(lacking)]
    library.add_special_tokens([AddedToken(mark, special=True) for mark in (*spare, *marks)])
    text: str = library.to_str()
    return text
