"""Track the instances of a video, and count those that cross the vertical line in its middle.

pip install 'solo-infer[video]' supervision trackers
python examples/track_and_count.py VIDEO [MODEL]
"""

import sys
from collections import Counter

import supervision as sv
from trackers import ByteTrackTracker

from solo_infer import load_model


def main(video: str, model: str = "decoupled_r50_3x") -> Counter[str]:
    segmenter = load_model(model)
    tracker = ByteTrackTracker(track_activation_threshold=0.4, high_conf_det_threshold=0.4)
    line, tracks, crossed = None, set(), Counter()
    for result in segmenter.stream(video):
        if line is None:
            height, width = result.image_size
            line = sv.LineZone(
                sv.Point(width / 2, 0), sv.Point(width / 2, height), triggering_anchors=[sv.Position.CENTER]
            )
        tracked = tracker.update(result.filter(0.3).to_supervision(), timestamp=result.frame_time)
        tracked = tracked[tracked.tracker_id >= 0]  # tracks of one frame have the id -1
        tracks.update(tracked.tracker_id.tolist())
        to_left, to_right = line.trigger(tracked)
        for label in tracked.class_id[to_left | to_right].tolist():
            crossed[result.categories.names[label]] += 1
    print(f"{video}: {len(tracks)} tracks; crossed the line: {dict(crossed) or 'none'}")
    return crossed


if __name__ == "__main__":
    main(*sys.argv[1:])
