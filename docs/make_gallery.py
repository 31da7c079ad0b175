"""Make the pictures of docs/gallery.md with the embedded model and the photos of the repository.

    pip install -e ".[test]" trackers
    python docs/make_gallery.py [NAME ...]

All photos are in the public domain or CC0: examples/README.md and tests/data/README.md name their sources.
"""

import sys
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw, ImageOps

from solo_infer import load_image, load_model

ROOT = Path(__file__).resolve().parents[1]
STREET = ROOT / "examples" / "street.jpg"
ASTRONAUT = ROOT / "tests" / "data" / "people" / "astronaut.jpg"
CAT = ROOT / "tests" / "data" / "chelsea.png"
OUTPUT = ROOT / "docs" / "gallery"
MODEL = load_model("tiny", device="cpu")
PALETTE = sv.ColorPalette.from_hex(["#00897b", "#f4511e", "#3949ab", "#fdd835", "#8e24aa", "#43a047"])
BY_INSTANCE = {"color_lookup": sv.ColorLookup.INDEX, "color": PALETTE}


def save(picture, name):
    """Write a picture of at most 900 pixels on a side as JPEG."""
    picture = picture.convert("RGB")
    picture.thumbnail((900, 900), Image.Resampling.LANCZOS)
    path = OUTPUT / f"{name}.jpg"
    picture.save(path, quality=82, optimize=True)
    print(path, path.stat().st_size)


def masks():
    return MODEL(CAT).plot(alpha=0.55)


def boxes():
    return MODEL(STREET).plot(boxes=True, alpha=0.35)


def contours():
    result = MODEL(STREET).filter(0.3)
    detections = result.to_supervision()
    picture = sv.PolygonAnnotator(thickness=2, **BY_INSTANCE).annotate(result.image.copy(), detections)
    return Image.fromarray(picture)


def halo():
    result = MODEL(ASTRONAUT).filter(0.5)
    gray = np.asarray(ImageOps.grayscale(Image.fromarray(result.image)).convert("RGB")) // 2 + 90
    people = result.filter(classes="person").masks.any(dim=0).numpy()
    return Image.fromarray(np.where(people[..., None], result.image, gray).astype(np.uint8))


def crops():
    largest = sorted(MODEL(STREET).filter(0.35), key=lambda instance: -int(instance.mask.sum()))[:6]
    pixels = load_image(STREET).pixels
    sheet = checkerboard(900, 560)
    for index, instance in enumerate(largest):
        left, top, right, bottom = map(round, instance.box)
        alpha = 255 * instance.mask.numpy().astype(np.uint8)
        cutout = Image.fromarray(np.dstack([pixels, alpha])[top:bottom, left:right])
        cutout = ImageOps.contain(cutout, (280, 260))
        column, row = index % 3, index // 3
        corner = (300 * column + (300 - cutout.width) // 2, 280 * row + (280 - cutout.height) // 2)
        sheet.paste(cutout, corner, cutout)
    return sheet


def checkerboard(width, height, side=20):
    rows, columns = np.mgrid[0:height, 0:width] // side
    return Image.fromarray(np.where((rows + columns) % 2, 255, 225).astype(np.uint8)).convert("RGB")


def tiles():
    size, overlap = 384, 96
    whole, tiled = MODEL(STREET), MODEL(STREET, tile=(size, overlap))
    rows = [result.plot(captions=False, min_score=0.35) for result in (whole, tiled)]
    return stacked(rows, [f"whole image, {count(whole)} instances", f"tiles, {count(tiled)} instances"])


def count(result):
    return len(result.filter(0.35))


def stacked(pictures, captions):
    """Return pictures below each other, each with a caption above."""
    width, bar = pictures[0].width, 34
    sheet = Image.new("RGB", (width, sum(picture.height + bar for picture in pictures)), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for picture, caption in zip(pictures, captions, strict=True):
        draw.text((8, top + 5), caption, fill="black", font_size=22)
        sheet.paste(picture, (0, top + bar))
        top += picture.height + bar
    return sheet


def tracks():
    """Return the last frame of a pan over the street, with the traces of the tracked cars."""
    from trackers import ByteTrackTracker

    street = Image.open(STREET).convert("RGB")
    tracker = ByteTrackTracker(track_activation_threshold=0.4, high_conf_det_threshold=0.4)
    trace = sv.TraceAnnotator(color=PALETTE, trace_length=60, thickness=3, color_lookup=sv.ColorLookup.TRACK)
    mask = sv.MaskAnnotator(color=PALETTE, color_lookup=sv.ColorLookup.TRACK, opacity=0.45)
    label = sv.LabelAnnotator(
        color=PALETTE, color_lookup=sv.ColorLookup.TRACK, text_scale=0.4, text_padding=3
    )
    width, step, frames = round(street.width * 0.7), 8, 24
    frame = None
    for index in range(frames):
        left = step * index
        pixels = np.asarray(street.crop((left, 0, left + width, street.height)))
        result = MODEL(pixels).filter(0.3, classes=["car", "truck", "bus", "person"])
        tracked = tracker.update(result.to_supervision())
        tracked = tracked[tracked.tracker_id >= 0]
        names = [
            f"#{number} {result.categories.names[label]}"
            for number, label in zip(tracked.tracker_id, tracked.class_id, strict=True)
        ]
        frame = mask.annotate(pixels.copy(), tracked)
        frame = trace.annotate(frame, tracked)
        frame = label.annotate(frame, tracked, labels=names)
    return Image.fromarray(frame)


def instances():
    """Return the picture that a notebook shows for a list of results."""
    import io

    results = MODEL([CAT, ASTRONAUT, STREET])
    return Image.open(io.BytesIO(results._repr_png_()))


PICTURES = {
    function.__name__: function
    for function in (masks, boxes, contours, halo, crops, tiles, tracks, instances)
}


def main(*names):
    OUTPUT.mkdir(exist_ok=True)
    for name in names or PICTURES:
        save(PICTURES[name](), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
