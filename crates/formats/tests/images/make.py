"""Writes the pictures here and what Pillow reads from them: pip install pillow==13.0.0 numpy."""

import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

W, H = 24, 17
y, x = np.mgrid[0:H, 0:W]
planes = [x * 255 // (W - 1), y * 255 // (H - 1), 255 - (x + y) * 255 // (W + H - 2)]
rgb = np.stack(planes, -1).astype(np.uint8)
rgb[4:9, 5:12] = [220, 40, 30]
alpha = ((x * 2 + y) * 255 // (2 * (W - 1) + H - 1)).astype(np.uint8)
alpha[:, :2] = 0
alpha[:, -3:] = 255
picture = Image.fromarray(rgb)
clear = Image.fromarray(np.dstack([rgb, alpha]))
exif = Image.Exif()
exif[0x112] = 6


def expect(name, image):
    if "A" in image.getbands():
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image.convert("RGB").save(f"expected/{name}.png", optimize=True)


def save(name, image, **options):
    image.save(name, **options)
    expect(name, ImageOps.exif_transpose(Image.open(name)))


save("baseline.jpg", picture, quality=90)
save("progressive.jpg", picture, quality=90, progressive=True)
save("444.jpg", picture, quality=90, subsampling=0)
save("rgb.jpg", picture, quality=90, keep_rgb=True)
save("grey.jpg", picture.convert("L"), quality=90)
save("cmyk.jpg", picture.convert("CMYK"), quality=90)
save("orientation.jpg", picture, quality=90, exif=exif)
save("orientation.png", picture, exif=exif)
save("orientation.webp", picture, lossless=True, exif=exif)
save("lossy.webp", picture, quality=90)
save("lossless.webp", picture, lossless=True)
save("alpha.webp", clear, lossless=True, exact=True)
save("lossy-alpha.webp", clear, quality=90)
save("palette.png", picture.quantize(16))
save("one-bit.png", picture.convert("1"))
save("grey.png", picture.convert("L"))
save("grey-alpha.png", clear.convert("LA"))
save("rgba.png", clear)
picture.quantize(16).save("palette-clear.png", transparency=3)
expect("palette-clear.png", Image.open("palette-clear.png").convert("RGBA"))

frames = dict(save_all=True, append_images=[picture.rotate(180)], duration=100)
picture.save("animated.png", **frames)
expect("animated.png", picture)
picture.save("animated.webp", lossless=True, **frames)
expect("animated.webp", picture)


def u24(n):
    return struct.pack("<I", n)[:3]


def riff(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


# An animation whose first frame is smaller than its canvas.
part = picture.crop((0, 0, 10, 8))
part.save("part.webp", lossless=True)
with open("part.webp", "rb") as file:
    pixels = file.read()[12:]
frame = u24(2) + u24(3) + u24(9) + u24(7) + u24(100) + b"\x02" + pixels
canvas = riff(b"VP8X", b"\x02\0\0\0" + u24(W - 1) + u24(H - 1))
animation = canvas + riff(b"ANIM", b"\xff" * 4 + b"\0\0") + riff(b"ANMF", frame) * 2
with open("part.webp", "wb") as file:
    file.write(riff(b"RIFF", b"WEBP" + animation))
whole = Image.new("RGB", (W, H), "white")
whole.paste(part, (4, 6))
expect("part.webp", whole)


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def sixteen_bits(name, values, kind):
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", W, H, 16, kind, 0, 0, 0)
    with open(name, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))
    expect(name, Image.fromarray((values >> 8).astype(np.uint8)))


wide = rgb.astype(np.uint16) * 256 + (x * y % 100).astype(np.uint16)[..., None]
sixteen_bits("rgb16.png", wide, 2)
sixteen_bits("grey16.png", wide[..., 1], 0)

picture.resize((11, 9), Image.BILINEAR).save("expected/smaller.png")
picture.resize((40, 50), Image.BILINEAR).save("expected/larger.png")
