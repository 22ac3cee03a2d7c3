"""What the tests of the construction share: tiny random DINO and CLIP as transformers saves them, own pairs, and a server that judges."""

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTImageProcessorPil, ViTModel

from tests.chat_server import Reply, completion, response
from tests.designer_answers import GOOD

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def tiny_models(folder: Path) -> tuple[str, str]:
    """Folders of a DINO (a ViT) and of a whole CLIP, drawn from one seed."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # tests share their cores, and threads of such small models wait for each other
    dino, clip = folder / "dino", folder / "clip"
    ViTModel(ViTConfig(**SIZES)).save_pretrained(dino)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(dino)
    text = {**SIZES, "vocab_size": 32, "max_position_embeddings": 8, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**SIZES, "projection_dim": 8}, projection_dim=8)).save_pretrained(clip)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(clip)
    return str(dino), str(clip)


def own_config(dino: str, clip: str, *, batch_size: int = 3, bounds: str = "") -> None:
    """Writes own.toml: small models, small squares."""
    sizes = f"ssim_side = 64\nbatch_size = {batch_size}"
    Path("own.toml").write_text(f'[scores]\ndino = "{dino}"\nclip = "{clip}"\n{sizes}\n{bounds}')


def drawing(colour: str, *, ground: str = "white", side: int = 64) -> Image.Image:
    """A disc on a ground."""
    picture = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(picture).ellipse((side // 4, side // 4, side * 3 // 4, side * 3 // 4), fill=colour)
    return picture


def own_pairs(folder: Path, rows: list[tuple[Image.Image | bytes, Image.Image | bytes, str]], name: str = "mine.jsonl") -> Path:
    """A jsonl of pairs with its pictures; bytes are written as they are."""
    lines = []
    for number, (source, target, prompt) in enumerate(rows):
        files = []
        for side, picture in (("a", source), ("b", target)):
            files.append(f"{number}{side}.png")
            if isinstance(picture, bytes):
                (folder / files[-1]).write_bytes(picture)
            else:
                picture.save(folder / files[-1])
        lines.append(json.dumps({"id": f"p{number}", "source": files[0], "target": files[1], "prompt": prompt}))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def judging(blueprint: str = GOOD) -> Reply:
    """Judges by a word in the instruction (wrong, partly; else aligned), and answers any other question with a blueprint."""

    def reply(request):
        text = request.text
        if "Verdict:" not in text:
            yield response(200, completion(blueprint))
            return
        instruction = text.split("describe the edit:\n\n")[1].split("\n")[0]
        verdict = "misaligned" if "wrong" in instruction else "partially aligned" if "partly" in instruction else "aligned"
        anew = "none" if verdict == "misaligned" else f"{instruction} The one disc, in full."
        yield response(200, completion(f"**Verdict:** {verdict}\n**Reason:** It was looked at.\n**Instruction:** {anew}"))

    return reply
