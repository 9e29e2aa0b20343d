"""F3: the gallery: what the model saw, thought and answered, in one HTML file.

The file holds its images itself and refers to nothing outside. One row per episode:
supports with their cue, query, prediction, ground truth and every map of the method;
from the best IoU to the worst. The prior mean is coloured over [0, 1], every other map
over [0, its largest value in the gallery], so the same colour means the same number in
every row.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageFilter

from diffup_jax import metrics
from diffup_jax.data.pictures import overlay
from diffup_jax.files import write_whole
from diffup_jax.types import CUES, Episode, Prediction

# Apart for every common kind of colour blindness, and rare in photographs.
FOREGROUND = (255, 45, 140)
BACKGROUND = (30, 120, 255)

_IGNORED = (128, 128, 128)
_PALETTE = "viridis"
_LONGEST = 256  # pixels of a thumbnail's longer side
_COLUMNS = ("support and cue", "query", "prediction", "ground truth")


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One way of one episode. Images are uint8 [h w 3], maps float [h w].

    `iou` in percent, of the shown prediction; `cues` names the kind of each support;
    `text` says whether the class name was given; `prediction` is the boolean answer,
    `truth` the mask and `valid` False where the pixel is ignored; `maps` are the
    method's.
    """

    name: str
    iou: float
    text: bool
    cues: tuple[str, ...]
    supports: UInt8[np.ndarray, "k h w 3"]
    cue_fg: Float[np.ndarray, "k h w"]
    cue_bg: Float[np.ndarray, "k h w"]
    query: UInt8[np.ndarray, "h w 3"]
    truth: Bool[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]
    prediction: Bool[np.ndarray, "h w"]
    maps: Mapping[str, Float[np.ndarray, "h w"]]


def gallery_items(
    episode: Episode,
    class_ids: Int[np.ndarray, "b n"],
    count: int,
    *,
    prediction: Prediction,
    names: Mapping[int, str],
) -> list[GalleryItem]:
    """The first `count` episodes of a batch as items, one per way.

    `prediction` is a method's answer, `names` class index -> name. The rule of
    prediction is the metrics'.
    """
    support, query = (
        type(part)(*(np.asarray(x)[:count] for x in part)) for part in episode
    )
    probability, threshold = (np.asarray(x, np.float32)[:count] for x in prediction[:2])
    maps = {k: np.asarray(v, np.float32) for k, v in prediction.maps.items()}
    shown = [metrics.predicted(*of) for of in zip(probability, threshold, strict=True)]
    items = []
    for b, n in np.ndindex(probability.shape[:2]):
        answer = shown[b][n]
        truth, valid = query.mask[b, n] > 0.5, query.valid[b]
        union = np.count_nonzero((answer | truth) & valid)
        kept = support.valid[b, n]
        items.append(
            GalleryItem(
                name=names[int(class_ids[b, n])],
                iou=100 * np.count_nonzero(answer & truth & valid) / max(union, 1),
                text=bool(support.text_valid[b, n]),
                cues=tuple(CUES[kind] for kind in support.kind[b, n][kept]),
                supports=_bytes(support.images[b, n][kept]),
                cue_fg=np.asarray(support.fg[b, n][kept], np.float32),
                cue_bg=np.asarray(support.bg[b, n][kept], np.float32),
                query=_bytes(query.image[b]),
                truth=truth,
                valid=valid,
                prediction=answer,
                maps={name: values[b, n] for name, values in maps.items()},
            )
        )
    return items


def colourise(
    values: Float[np.ndarray, "h w"], *, low: float, high: float
) -> UInt8[np.ndarray, "h w 3"]:
    """A scalar map in colour: `low` dark blue, `high` yellow, outside values clipped.

    The map is perceptually even, so equal steps of value look like equal steps.
    """
    scaled = (np.asarray(values, np.float32) - low) / max(high - low, 1e-12)
    scaled = np.clip(np.nan_to_num(scaled), 0, 1)
    return matplotlib.colormaps[_PALETTE](scaled, bytes=True)[..., :3]


def write_gallery(
    path: Path,
    items: Sequence[GalleryItem],
    *,
    title: str,
    facts: Mapping[str, str],
) -> None:
    """Write the gallery, whole or not at all; the folder is made.

    `facts` are shown above the rows in their order (dataset, protocol, weights, ...).
    """
    ranked = sorted(items, key=lambda item: -item.iou)
    highest: dict[str, float] = {}
    for name, values in ((k, v) for item in ranked for k, v in item.maps.items()):
        top = 1.0 if name == metrics.PRIOR else float(values.max())
        highest[name] = max(highest.get(name, 0.0), top)
    page = _PAGE.substitute(
        title=html.escape(title),
        facts="".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
            for name, value in facts.items()
        ),
        legend=_legend(highest),
        rows="".join(
            f"<h2>{heading} <small>{len(part)}</small></h2>{_header(highest)}"
            + "".join(_row(item, highest) for item in part)
            for heading, part in _thirds(ranked)
        ),
        foreground=f"rgb{FOREGROUND}",
        background=f"rgb{BACKGROUND}",
    )
    write_whole(path, page)


def _thirds(
    ranked: Sequence[GalleryItem],
) -> list[tuple[str, Sequence[GalleryItem]]]:
    third = len(ranked) // 3
    if not third:
        return [("Episodes", ranked)] if ranked else []
    return [
        ("Best", ranked[:third]),
        ("In between", ranked[third:-third]),
        ("Worst", ranked[-third:]),
    ]


def _row(item: GalleryItem, highest: Mapping[str, float]) -> str:
    name = html.escape(item.name)
    counted = {cue: item.cues.count(cue) for cue in CUES if cue in item.cues}
    told = [f"{many} × {cue}" for cue, many in counted.items()]
    told += ["text"] if item.text else []
    truth = overlay(item.query, ~item.valid * 1.0, colour=_IGNORED, strength=0.8)
    truth = overlay(
        truth, (item.truth & item.valid) * 1.0, colour=FOREGROUND, strength=0.6
    )
    prediction = overlay(
        item.query, item.prediction * 1.0, colour=FOREGROUND, strength=0.6
    )
    pictures = {"query": item.query, "prediction": prediction, "ground truth": truth}
    for column, top in highest.items():
        found = colourise(item.maps[column], low=0.0, high=top)
        pictures[column.replace("_", " ")] = found
    cells = "".join(
        f"<div>{_image(picture, f'{column} of {item.name}')}</div>"
        for column, picture in pictures.items()
    )
    return (
        f'<article><header><b>{name}</b><span class="cue">{", ".join(told)}</span>'
        f'<meter min="0" max="100" value="{item.iou:.1f}"></meter>'
        f"<span>IoU {item.iou:.1f}</span></header>"
        f'<div class="cells" style="--columns:{1 + len(pictures)}">{_supports(item)}'
        f"{cells}</div></article>"
    )


def _supports(item: GalleryItem) -> str:
    if not item.cues:
        said = f"“{html.escape(item.name)}”" if item.text else "none"
        return f'<div class="said">{said}</div>'
    pictures = []
    for place, cue in enumerate(item.cues):
        # What a box marks is only maybe foreground: show more of the photograph.
        fg, strength = item.cue_fg[place], 0.35 if cue == "box" else 0.6
        if cue in ("scribble", "point"):
            # One pixel of a photograph is nothing on a thumbnail: draw it thicker.
            fg, strength = _thicker(fg), 1.0
        picture = overlay(
            item.supports[place], item.cue_bg[place], colour=BACKGROUND, strength=0.35
        )
        picture = overlay(picture, fg, colour=FOREGROUND, strength=strength)
        pictures.append(_image(picture, f"support of {item.name}, {cue}"))
    across = math.ceil(math.sqrt(len(pictures)))
    return f'<div class="supports" style="--across:{across}">{"".join(pictures)}</div>'


def _thicker(mask: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    size = 2 * (max(mask.shape) // 96) + 1
    grown = Image.fromarray(_bytes(mask)).filter(ImageFilter.MaxFilter(size))
    return np.asarray(grown, np.float32) / 255


def _header(highest: Mapping[str, float]) -> str:
    columns = (*_COLUMNS, *map(_words, highest))
    return (
        f'<div class="cells names" style="--columns:{len(columns)}">'
        f"{''.join(f'<div>{column}</div>' for column in columns)}</div>"
    )


def _words(name: str) -> str:
    return html.escape(name.replace("_", " "))


def _legend(highest: Mapping[str, float]) -> str:
    ramp = colourise(np.linspace(0, 1, 9)[None], low=0.0, high=1.0)[0]
    colours = ",".join("rgb({},{},{})".format(*colour) for colour in ramp)
    bars = "".join(
        f'<span>{_words(name)} 0 <i class="ramp" style="background:linear-gradient('
        f'90deg,{colours})"></i> {top:.3g}</span>'
        for name, top in highest.items()
    )
    return (
        '<span><i class="fg"></i> foreground</span>'
        '<span><i class="bg"></i> known background</span>'
        '<span><i class="none"></i> untinted: unknown</span>'
        f'<span><i class="ignored"></i> ignored</span>{bars}'
    )


def _image(picture: UInt8[np.ndarray, "h w 3"], words: str) -> str:
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((_LONGEST, _LONGEST))
    buffer = io.BytesIO()
    # Full colour resolution: tints have sharp edges.
    thumbnail.save(buffer, "JPEG", quality=88, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{thumbnail.width}" '
        f'height="{thumbnail.height}" alt="{html.escape(words)}" loading="lazy">'
    )


def _bytes(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    return np.clip(np.rint(np.float32(image) * 255), 0, 255).astype(np.uint8)


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title><style>
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#667080;
--line:#e1e5ea}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1d2126;--ink:#e8ebef;
--soft:#98a2b0;--line:#2d333b}}
*{box-sizing:border-box}
body{margin:0 auto;padding:24px;max-width:1500px;background:var(--page);
color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:22px;margin:0 0 12px}h2{font-size:17px;margin:28px 0 8px}
small,dt,.cue,.names,.legend{color:var(--soft)}
dl{display:flex;flex-wrap:wrap;gap:6px 24px;margin:0 0 14px}
dt{font-size:12px}dd{margin:0;overflow-wrap:anywhere}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13px}
.legend i{display:inline-block;width:14px;height:12px;border-radius:3px;
vertical-align:-1px;border:1px solid var(--line)}
.legend .ramp{width:90px}.fg{background:$foreground}.bg{background:$background}
.ignored{background:#808080}
.cells{display:grid;grid-template-columns:repeat(var(--columns),minmax(96px,1fr));gap:8px;
align-items:start;min-width:720px}
.names{position:sticky;top:0;z-index:1;padding:6px 12px;background:var(--page);
font-size:12px;text-align:center}
article{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px 12px 12px;margin-bottom:10px;min-width:746px}
header{display:flex;align-items:center;gap:12px;margin-bottom:8px}
header meter{margin-left:auto;width:120px}header span:last-child{
font-variant-numeric:tabular-nums;width:70px;text-align:right}
img{display:block;width:100%;height:auto;border-radius:5px}
.supports{display:grid;grid-template-columns:repeat(var(--across),1fr);gap:3px}
.said{font-style:italic;align-self:center;text-align:center}
</style></head><body>
<h1>$title</h1><dl>$facts</dl><div class="legend">$legend</div>
$rows
</body></html>
""")
