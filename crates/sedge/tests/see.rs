//! The real binary looks at pictures, on the command line and over HTTP.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use common::{Serving, complaint, done, run};
use indexmap::IndexMap;
use sedge_formats::image::{Image, Limits, decode};
use sedge_formats::onnx::{
    Attribute, Dim, ElementType, Graph, Model, Node, Tensor, TensorData, ValueInfo, write,
};
use serde_json::{Value, json};

/// A network of one input and one output, with the preset and the classes `red`, `green`, `blue`.
fn network(
    preset: &str,
    size: [usize; 2],
    output: &[usize],
    nodes: Vec<Node>,
    initializers: Vec<Tensor>,
) -> Model {
    let value = |name: &str, shape: &[usize]| ValueInfo {
        name: name.to_owned(),
        element: ElementType::F32,
        shape: Some(shape.iter().map(|&n| Dim::Fixed(n)).collect()),
    };
    let meta = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Model {
        ir_version: 8,
        opset: 13,
        domains: vec![],
        producer: "a test".to_owned(),
        metadata: vec![
            meta("sedge.preset", preset),
            meta("sedge.labels", "red\ngreen\nblue"),
        ],
        graph: Graph {
            name: "colours".to_owned(),
            nodes,
            initializers,
            inputs: vec![value("x", &[1, 3, size[0], size[1]])],
            outputs: vec![value("y", output)],
        },
    }
}

fn node(op: &str, inputs: &[&str], output: &str) -> Node {
    Node {
        name: format!("make {output}"),
        op: op.to_owned(),
        domain: String::new(),
        inputs: inputs.iter().map(|&x| x.to_owned()).collect(),
        outputs: vec![output.to_owned()],
        attributes: IndexMap::<String, Attribute>::new(),
    }
}

fn tensor(name: &str, shape: &[usize], data: TensorData) -> Tensor {
    Tensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        data,
    }
}

/// Says of which colour a picture has most.
fn classifier() -> Model {
    let nodes = vec![
        node("GlobalAveragePool", &["x"], "mean"),
        node("Flatten", &["mean"], "y"),
    ];
    network("yolo-classify", [8, 8], &[1, 3], nodes, vec![])
}

/// Finds each picture's colours in one place: columns 8 to 24 and rows 12 to 20 of 32.
fn detector() -> Model {
    let mut weights = vec![0.0; 7 * 3];
    for colour in 0..3 {
        weights[(4 + colour) * 3 + colour] = 1.0;
    }
    let nodes = vec![
        node("GlobalAveragePool", &["x"], "mean"),
        node("Conv", &["mean", "weights", "bias"], "column"),
        node("Reshape", &["column", "shape"], "y"),
    ];
    let bias = vec![16.0, 16.0, 16.0, 8.0, 0.0, 0.0, 0.0];
    let constants = vec![
        tensor("weights", &[7, 3, 1, 1], TensorData::F32(weights)),
        tensor("bias", &[7], TensorData::F32(bias)),
        tensor("shape", &[3], TensorData::I64(vec![1, 7, 1])),
    ];
    network("yolov8", [32, 32], &[1, 7, 1], nodes, constants)
}

/// Says of each pixel which colour it has most of.
fn segmenter() -> Model {
    let nodes = vec![node("Relu", &["x"], "y")];
    network("segment", [8, 8], &[1, 3, 8, 8], nodes, vec![])
}

/// A folder with all of them, and pictures.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        place.write("colour.onnx", &write(&classifier()));
        place.write("boxes.onnx", &write(&detector()));
        place.write("pixels.onnx", &write(&segmenter()));
        place.write("red.png", &picture(64, 32, |_| [255, 0, 0]));
        let halves = picture(16, 16, |x| if x < 4 { [255, 0, 0] } else { [0, 0, 255] });
        place.write("halves.png", &halves);
        place
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// `sedge see VERB -m MODEL …`; arguments that are names of files here become paths.
    fn see(&self, verb: &str, args: &[&str]) -> std::process::Output {
        let place = |arg: &&str| match self.0.path().join(arg).exists() {
            true => self.path(arg),
            false => (*arg).to_owned(),
        };
        let args: Vec<String> = args.iter().map(place).collect();
        let all: Vec<&str> = ["see", verb, "-m"]
            .into_iter()
            .chain(args.iter().map(String::as_str))
            .collect();
        run(&all)
    }

    fn json(&self, verb: &str, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&done(self.see(verb, &args))).unwrap()
    }
}

fn picture(width: usize, height: usize, colour: impl Fn(usize) -> [u8; 3]) -> Vec<u8> {
    let pixels = (0..width * height).flat_map(|i| colour(i % width));
    let image = Image {
        width,
        height,
        pixels: pixels.collect(),
    };
    image.encode_png()
}

fn image(path: &Path) -> Image {
    decode(&std::fs::read(path).unwrap(), Limits::default()).unwrap()
}

#[test]
fn a_picture_is_classified() {
    let place = Place::new();
    let text = done(place.see("classify", &["colour.onnx", "red.png", "--top", "1"]));
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].ends_with("red.png  64 × 32"), "{text}");
    assert_eq!(lines[1], "  red  1.000");
    assert!(lines[2].ends_with(" ms to see"), "{text}");

    let object = place.json(
        "classify",
        &["colour.onnx", "halves.png", "--threshold", "0.2"],
    );
    assert_eq!(object["task"], "classify");
    assert_eq!(object["preset"], "yolo-classify");
    let labels = &object["pictures"][0]["labels"];
    assert_eq!(labels[0]["label"], "blue");
    assert!(
        (labels[0]["score"].as_f64().unwrap() - 0.75).abs() < 0.02,
        "{labels}"
    );
    assert_eq!(labels.as_array().unwrap().len(), 2, "green is below 0.2");
    // Other names.
    place.write("names.txt", b"rouge\nvert\nbleu\n");
    let text = done(place.see(
        "classify",
        &["colour.onnx", "red.png", "--labels", "names.txt"],
    ));
    assert!(text.contains("rouge"), "{text}");
}

#[test]
fn boxes_are_in_the_pictures_pixels_and_drawn_there() {
    let place = Place::new();
    let drawn = place.path("drawn.png");
    let object = place.json("detect", &["boxes.onnx", "red.png", "--draw", &drawn]);
    let boxes = object["pictures"][0]["boxes"].as_array().unwrap();
    assert_eq!(boxes.len(), 1, "{boxes:?}");
    assert_eq!(boxes[0]["label"], "red");
    // Half as large and 8 rows lower in the network's input.
    assert_eq!(boxes[0]["box"], json!([16.0, 8.0, 48.0, 24.0]));
    let image = image(Path::new(&drawn));
    assert_eq!((image.width, image.height), (64, 32));
    let red = image
        .pixels
        .chunks(3)
        .filter(|pixel| *pixel == [255, 0, 0])
        .count();
    assert!(
        (1..64 * 32).contains(&red),
        "something is drawn over the picture"
    );

    let text = done(place.see("detect", &["boxes.onnx", "red.png", "--threshold", "0.99"]));
    assert!(text.contains("\n  nothing\n"), "{text}");
}

#[test]
fn pixels_have_classes() {
    let place = Place::new();
    let object = place.json("segment", &["pixels.onnx", "halves.png"]);
    let mask = &object["pictures"][0]["mask"];
    assert_eq!(mask["classes"][0]["label"], "blue");
    assert_eq!(mask["classes"][0]["share"], 0.75);
    let runs: Vec<u64> = [0, 4, 2, 12].repeat(16);
    assert_eq!(mask["runs"], json!(runs));
}

#[test]
fn folders_are_read_in_order_and_drawn_into_folders() {
    let place = Place::new();
    for name in ["frames/2.png", "frames/10.PNG", "frames/1.png"] {
        place.write(name, &picture(4, 4, |_| [0, 255, 0]));
    }
    place.write("frames/notes.txt", b"no picture");
    let out = place.path("out");
    let args = ["colour.onnx", "frames", "frames/1.png", "--draw", &out];
    let object = place.json("classify", &args);
    let files = object["pictures"].as_array().unwrap().iter();
    let names: Vec<&str> = files
        .map(|x| x["file"].as_str().unwrap().rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["1.png", "10.PNG", "2.png", "1.png"]);
    let mut drawn: Vec<PathBuf> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into())
        .collect();
    drawn.sort();
    assert_eq!(
        drawn,
        ["1-2.png", "1.png", "10.png", "2.png"].map(PathBuf::from)
    );

    let one = place.path("one.png");
    let errors = complaint(
        place.see("classify", &["colour.onnx", "frames", "--draw", &one]),
        2,
    );
    assert!(errors.contains("--draw FOLDER"), "{errors}");
    // Drawings never take the place of pictures.
    for (picture, draw) in [("frames", "frames"), ("red.png", "red.png")] {
        let args = ["colour.onnx", picture, "--draw", draw];
        let errors = complaint(place.see("classify", &args), 2);
        assert!(errors.contains("pictures themselves"), "{errors}");
    }
    std::fs::create_dir(place.0.path().join("empty")).unwrap();
    let errors = complaint(place.see("classify", &["colour.onnx", "empty"]), 1);
    assert!(errors.contains("no pictures"), "{errors}");
}

/// A PNG file's head that claims 60,000 × 60,000 pixels, with the rest of a small one.
fn boast() -> Vec<u8> {
    let mut bytes = picture(4, 4, |_| [0; 3]);
    for at in [16, 20] {
        bytes[at..at + 4].copy_from_slice(&60_000u32.to_be_bytes());
    }
    // The chunk's checksum: CRC-32 of its type and data.
    let crc = bytes[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    });
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    bytes
}

#[test]
fn a_picture_that_cannot_be_read_stops_no_other() {
    let place = Place::new();
    let whole = picture(40, 40, |x| [x as u8, 1, 2]);
    place.write("cut.png", &whole[..whole.len() / 2]);
    place.write("boast.png", &boast());
    place.write("text.jpg", b"not a picture");
    let args = [
        "colour.onnx",
        "cut.png",
        "boast.png",
        "text.jpg",
        "none.png",
        "red.png",
    ];
    let output = place.see("classify", &args);
    let seen = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        seen.contains("red.png") && seen.contains("  red    1.000"),
        "{seen}"
    );
    let errors = complaint(output, 1);
    for part in [
        "cut.png: ",
        "boast.png: the picture has 60000 × 60000 pixels",
        "text.jpg: the file begins with",
        "none.png: No such file",
        "4 of 5 pictures could not be read",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn wrong_uses_say_what_to_try() {
    let place = Place::new();
    let mut strange = classifier();
    strange.graph.nodes[0].op = "FlyAway".to_owned();
    strange.graph.nodes.push(node("SwimAway", &["x"], "z"));
    strange.graph.outputs.push(ValueInfo {
        name: "z".to_owned(),
        ..strange.graph.outputs[0].clone()
    });
    place.write("strange.onnx", &write(&strange));
    let mut open = classifier();
    open.graph.inputs[0].shape = Some(vec![
        Dim::Symbol("batch".to_owned()),
        Dim::Fixed(3),
        Dim::Unknown,
        Dim::Unknown,
    ]);
    place.write("open.onnx", &write(&open));
    place.write("cut.onnx", &write(&detector())[..50]);
    let mut vague = classifier();
    vague.metadata.clear();
    place.write("vague.onnx", &write(&vague));

    for (verb, args, parts) in [
        (
            "detect",
            &["colour.onnx", "red.png"][..],
            &["not for detect", "sedge see classify"][..],
        ),
        (
            "classify",
            &["none.onnx", "red.png"],
            &["no such file or network", "resnet-18"],
        ),
        (
            "classify",
            &["strange.onnx", "red.png"],
            &["FlyAway", "SwimAway", "sedge show"],
        ),
        (
            "classify",
            &["open.onnx", "red.png"],
            &["height and width", "--size"],
        ),
        ("classify", &["cut.onnx", "red.png"], &["cut.onnx"]),
        (
            "classify",
            &["vague.onnx", "red.png"],
            &["yolov5", "--preset"],
        ),
        (
            "classify",
            &["vague.onnx", "red.png", "--preset", "x"],
            &["there is no preset"],
        ),
        (
            "classify",
            &["colour.onnx", "red.png", "--size", "9"],
            &["8 × 8", "without --size"],
        ),
        (
            "classify",
            &["colour.onnx", "red.png", "--labels", "no.txt"],
            &["no.txt"],
        ),
    ] {
        let errors = complaint(place.see(verb, args), 1);
        for part in parts {
            assert!(errors.contains(part), "{args:?}, {part}: {errors}");
        }
    }
    for args in [
        &["colour.onnx"][..],
        &["colour.onnx", "red.png", "--threshold", "2"],
        &["colour.onnx", "red.png", "--size", "0x8"],
        &["colour.onnx", "red.png", "--weights", "red.png"],
    ] {
        complaint(place.see("classify", args), 2);
    }
    let seen = done(place.see("classify", &["open.onnx", "red.png", "--size", "16x8"]));
    assert!(seen.contains("  red    1.000"), "{seen}");
}

#[test]
fn networks_by_name_say_that_their_weights_are_random() {
    let place = Place::new();
    let args = ["mobilenet-v3-small", "red.png", "--size", "32"];
    let output = place.see("classify", &args);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("random weights"), "{errors}");
    assert_eq!(done(output).lines().count(), 7);
    assert_eq!(place.json("classify", &args)["random_weights"], true);
}

#[test]
fn show_says_what_a_network_holds() {
    let place = Place::new();
    let boxes = place.path("boxes.onnx");
    let text = done(run(&["show", &boxes]));
    for part in [
        "input          x [1, 3, 32, 32]",
        "output         y [1, 7, 1]",
        "Conv × 1",
        "task           detect, preset yolov8",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let object: Value = serde_json::from_str(&done(run(&["show", "--json", &boxes]))).unwrap();
    assert_eq!(object["opset"], "13");
    assert_eq!(object["operators"]["Conv"], 1);
    assert_eq!(object["weights"], 21, "biases are none");
    assert_eq!(object["unsupported"], json!([]));

    let mut strange = detector();
    strange.graph.nodes[0].op = "FlyAway".to_owned();
    strange.graph.nodes[2].op = "SwimAway".to_owned();
    place.write("strange.onnx", &write(&strange));
    let text = done(run(&["show", &place.path("strange.onnx")]));
    assert!(text.contains("FlyAway (node \"make mean\")"), "{text}");
    let text = done(run(&["show", "mobilenet-v1", "--size", "96"]));
    assert!(
        text.contains("input [1, 3, 96, 96]") && text.contains("classify"),
        "{text}"
    );
}

/// Posts, and reads the status and the body.
fn post(address: &str, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: {kind}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .unwrap();
    // A server that refuses a body may not read all of it.
    let _ = stream.write_all(body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head[9..12].parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

#[test]
fn a_server_of_networks_alone_sees() {
    let place = Place::new();
    let [colour, boxes, pixels] =
        ["colour", "boxes", "pixels"].map(|x| format!("{x}={}", place.path(&format!("{x}.onnx"))));
    let server = Serving::start(&[
        "--vision",
        &colour,
        "--vision",
        &boxes,
        "--vision",
        &pixels,
        "--max-body",
        "100000",
    ]);
    assert!(server.greeting.contains("/vision\n"), "{}", server.greeting);
    let address = server.greeting.split("http://").nth(1).unwrap();
    let address = address.split('/').next().unwrap();
    let post = |path: &str, kind: &str, body: &[u8]| post(address, path, kind, body);
    let red = std::fs::read(place.path("red.png")).unwrap();

    let (status, seen) = post("/v1/vision/detect", "image/png", &red);
    assert_eq!(status, 200, "{seen}");
    assert_eq!(seen["model"], "boxes");
    assert_eq!((&seen["width"], &seen["height"]), (&json!(64), &json!(32)));
    assert_eq!(seen["boxes"][0]["box"], json!([16.0, 8.0, 48.0, 24.0]));
    assert!(seen["time_ms"].as_f64().unwrap() > 0.0);
    let (_, seen) = post("/v1/vision/detect?threshold=0.99", "image/png", &red);
    assert_eq!(seen["boxes"], json!([]));
    let (_, seen) = post("/v1/vision/classify?top=1&model=colour", "image/png", &red);
    assert_eq!(seen["labels"].as_array().unwrap().len(), 1);
    assert_eq!(seen["labels"][0]["label"], "red");
    let (_, seen) = post("/v1/vision/segment", "image/png", &red);
    assert_eq!(seen["mask"]["runs"], json!([0, 64 * 32]));

    // One red pixel, as Python's zlib wrote it.
    let url = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
    let ask = |body: Value| {
        post(
            "/v1/vision/classify",
            "application/json",
            body.to_string().as_bytes(),
        )
    };
    let (status, seen) = ask(json!({"model": "colour", "image": url, "top": 1}));
    assert_eq!(
        (status, &seen["labels"][0]["label"]),
        (200, &json!("red")),
        "{seen}"
    );

    let blamed = |(status, body): (u16, Value)| (status, body["error"]["param"].clone());
    for (asked, param) in [
        (json!({"model": "colour"}), "image"),
        (json!({"image": "https://example.org/x.png"}), "image"),
        (json!({"image": "data:image/png;base64,%%%"}), "image"),
        (json!({"image": url, "top": 0}), "top"),
        (json!({"image": url, "threshold": 2}), "threshold"),
        (json!({"image": url, "colour": "red"}), "colour"),
        (json!({"image": url, "model": "boxes"}), "model"),
    ] {
        assert_eq!(blamed(ask(asked.clone())), (400, json!(param)), "{asked}");
    }
    assert_eq!(
        blamed(ask(json!({"image": url, "model": "none"}))),
        (404, json!("model"))
    );
    for (path, kind, body, status) in [
        (
            "/v1/vision/classify",
            "image/png",
            &red[..red.len() / 2],
            400,
        ),
        ("/v1/vision/classify", "image/png", &boast()[..], 400),
        ("/v1/vision/classify", "image/jpeg", b"not a picture", 400),
        ("/v1/vision/classify?top=x", "image/png", &red, 400),
        ("/v1/vision/segment?top=1", "image/png", &red, 400),
        ("/v1/vision/classify", "image/gif", &red, 415),
        ("/v1/vision/classify", "text/plain", &red, 415),
        ("/v1/vision/classify", "image/png", &[0; 200_000], 413),
        ("/v1/vision/imagine", "image/png", &red, 404),
    ] {
        assert_eq!(post(path, kind, body).0, status, "{path} {kind}");
    }
    let metrics = server.metrics();
    assert!(
        metrics.contains("sedge_vision_seconds_count{model=\"boxes\"} 2"),
        "{metrics}"
    );
    let (status, _) = post(
        "/v1/chat/completions",
        "application/json",
        br#"{"model":"boxes","messages":[]}"#,
    );
    assert_eq!(status, 400);
}

#[test]
fn names_of_served_networks_are_their_own() {
    let place = Place::new();
    let model = format!("seedling={}", place.path("colour.onnx"));
    let errors = complaint(
        run(&["serve", "--port", "0", "-m", "seedling", "--vision", &model]),
        2,
    );
    assert!(errors.contains("another model"), "{errors}");
    let errors = complaint(
        run(&["serve", "--port", "0", "-m", &place.path("colour.onnx")]),
        1,
    );
    assert!(errors.contains("--vision"), "{errors}");
}
