//! Which preset a graph follows, when nobody says: what its metadata say, else what only one
//! preset's outputs are shaped like.

use super::{Preset, TaskError, preset, ssd, yolo};

/// A preset, and what it was seen from.
pub(super) fn preset(
    metadata: &[(String, String)],
    size: [usize; 2],
    outputs: &[Vec<usize>],
) -> Result<(Preset, String), TaskError> {
    let value = |key: &str| metadata.iter().find(|(k, _)| k == key).map(|(_, v)| &v[..]);
    if let Some(name) = value("sedge.preset") {
        return Ok((preset::named(name)?, "the model names it".to_owned()));
    }
    let shapes: Vec<&[usize]> = outputs.iter().map(|x| &x[..]).collect();
    let places = yolo::places(size);
    // Ultralytics' exports name their task and, for detectors, strides.
    let ultralytics = value("task").filter(|_| value("names").is_some());
    let name = match (ultralytics, &shapes[..]) {
        (Some("classify"), [[1, _]]) => "yolo-classify",
        (None, [[1, n, row]]) if *n == places && *row > 5 => "yolox",
        // Poses and turned boxes have outputs of the same kind that mean something else.
        (None | Some("detect"), [[1, n, row]]) if *n == 3 * places && *row > 5 => "yolov5",
        (None | Some("detect"), [[1, column, n]]) if *n == places && *column > 4 => "yolov8",
        (_, [[1, n, 4], [1, m, _]] | [[1, m, _], [1, n, 4]])
            if n == m && *n == ssd::count(size) =>
        {
            "ssdlite"
        }
        (None, [[1, 1000] | [1, 1000, 1, 1]]) => "imagenet",
        (None, [[1, 1, h, w]]) if [*w, *h] == size => "text",
        (None, [[1, 2..=1024, h, w]]) if [*w, *h] == size => "segment",
        _ => {
            return Err(TaskError::Ambiguous {
                why: format!("outputs are {outputs:?} of an input of {size:?}"),
            });
        }
    };
    let [w, h] = size;
    let why = format!("its outputs are {outputs:?} of {w} × {h} pixels");
    Ok((preset::named(name)?, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(
        metadata: &[(&str, &str)],
        side: usize,
        outputs: &[&[usize]],
    ) -> Result<&'static str, TaskError> {
        let metadata: Vec<(String, String)> = metadata
            .iter()
            .map(|&(a, b)| (a.to_owned(), b.to_owned()))
            .collect();
        let outputs: Vec<Vec<usize>> = outputs.iter().map(|x| x.to_vec()).collect();
        preset(&metadata, [side; 2], &outputs).map(|(preset, _)| preset.name)
    }

    #[test]
    fn shapes_and_metadata_tell_presets() {
        let ultralytics = [("task", "classify"), ("names", "{0: 'a'}")];
        for (metadata, side, outputs, expected) in [
            (&[][..], 416, &[&[1, 3549, 85][..]][..], "yolox"),
            (&[], 640, &[&[1, 25200, 85]], "yolov5"),
            (&[], 640, &[&[1, 84, 8400]], "yolov8"),
            (&[], 320, &[&[1, 3234, 4], &[1, 3234, 91]], "ssdlite"),
            (&[], 320, &[&[1, 3234, 91], &[1, 3234, 4]], "ssdlite"),
            (&[], 224, &[&[1, 1000]], "imagenet"),
            (&[], 640, &[&[1, 1, 640, 640]], "text"),
            (&[], 512, &[&[1, 21, 512, 512]], "segment"),
            (&ultralytics, 224, &[&[1, 1000]], "yolo-classify"),
            (
                &[("sedge.preset", "inception")],
                224,
                &[&[1, 7]],
                "inception",
            ),
        ] {
            assert_eq!(guess(metadata, side, outputs).unwrap(), expected);
        }
    }

    #[test]
    fn what_could_be_anything_is_an_error_that_lists_presets() {
        for outputs in [&[&[1, 10][..]][..], &[], &[&[1, 100, 85]], &[&[2, 1000]]] {
            let error = guess(&[], 224, outputs).unwrap_err().to_string();
            assert!(error.contains("imagenet, "), "{error}");
        }
        assert!(matches!(
            guess(&[("sedge.preset", "x")], 224, &[]),
            Err(TaskError::Unknown { .. })
        ));
    }
}
