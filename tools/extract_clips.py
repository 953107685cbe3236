"""Extract clips to frames and wav files, for quicker reading, or to move a data set that needs no video decoder.

    python tools/extract_clips.py data/kinetics400 ks31_train.txt ks31_val.txt --out data/ks_frames --short-side 256
    python tools/extract_clips.py data/crema-d train.txt --visual VideoFlash --audio AudioWAV --out data/crema-d_frames

OUT gets <clip>/img_00001.jpg ..., <clip>.wav (16-bit PCM, mono), manifest.jsonl with the time stamps of the frames,
and the lists. A clip that cannot be read is counted and reported. Interrupted? Run the same command again.
"""
from __future__ import annotations

import argparse
import os

from rich.progress import track

from mmfusion_plugin.engine import launch
from mmfusion_plugin.recognition.extraction import Options, extract


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", help="as in the config's dataset")
    parser.add_argument("ann_file", nargs="+", help="lists of clips below it, as AudioVisualDataset reads them")
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--fps", type=float, help="frames per second to keep (default: all)")
    parser.add_argument("--short-side", type=int, metavar="PIXELS",
                        help="shrink frames whose shorter side is longer (default: as they are)")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG files (default: 95)")
    parser.add_argument("--sample-rate", type=int, metavar="HZ", help="of the wav files (default: as stored)")
    parser.add_argument("--visual", metavar="FOLDER", default="", help="dataset.data_prefix.visual")
    parser.add_argument("--audio", metavar="FOLDER", help="dataset.data_prefix.audio (default: sound in the videos)")
    parser.add_argument("--audio-suffix", default=".wav", help="dataset.audio_suffix (default: .wav)")
    parser.add_argument("--fields", nargs="+", default=["visual", "label"], help="dataset.fields")
    parser.add_argument("--delimiter", help="dataset.delimiter (default: white space)")
    parser.add_argument("--overwrite", action="store_true",
                        help="extract clips again that were extracted otherwise, and replace what is in the way")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that decode (default: all cores)")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    if len({os.path.basename(name) for name in args.ann_file}) < len(args.ann_file):
        parser.error("the lists need different names, as all are copied to --out")
    prefix = {"visual": args.visual} | ({} if args.audio is None else {"audio": args.audio})
    delimiter = None if args.delimiter is None else args.delimiter.replace("\\t", "\t")
    try:
        options = Options(args.fps, args.short_side, args.quality, args.sample_rate)
        for ann_file in args.ann_file:
            report = extract(
                args.data_root, ann_file, args.out, options, prefix, args.fields, delimiter, args.audio_suffix,
                args.overwrite, args.processes,
                lambda clips, total: track(clips, f"extracting {total} clips", total),
            )
            print(f"{ann_file}: {report.text()}")
    except (ValueError, OSError) as error:
        raise launch.UsageError(str(error)) from error
    name = os.path.basename(args.ann_file[0])
    print(f"In a config: dataset=dict(..., data_root='{args.out}', ann_file='{name}', "
          "data_prefix=dict(visual='', audio=''), pipeline=...)")


if __name__ == "__main__":
    launch.run_tool(main)
