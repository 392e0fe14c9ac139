//! Each method against the formula of its paper, in matrices of f64; and checkpoints that are
//! wrong.

use std::path::Path;

use half::{bf16, f16};
use indexmap::IndexMap;
use sedge_formats::safetensors::Tensor;
use sedge_kernels::DType;
use serde_json::{Value, json};

use super::base::product;
use super::{Adapter, AdapterError, Part};
use crate::decoder::Decoder;
use crate::open::{Model, open};

fn model(name: &str) -> Decoder {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    match open(&folder.join(name)).unwrap().model {
        Model::Decoder(model) => model,
        Model::Encoder(_) => panic!("{name} is an encoder"),
    }
}

/// A matrix of f64, the plain way.
#[derive(Debug, Clone, PartialEq)]
struct Dense {
    rows: usize,
    cols: usize,
    values: Vec<f64>,
}

impl Dense {
    fn of(rows: usize, cols: usize, each: impl Fn(usize, usize) -> f64) -> Dense {
        let values = (0..rows * cols).map(|i| each(i / cols, i % cols)).collect();
        Dense { rows, cols, values }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.values[row * self.cols + col]
    }

    fn times(&self, other: &Dense) -> Dense {
        assert_eq!(self.cols, other.rows);
        Dense::of(self.rows, other.cols, |i, j| {
            (0..self.cols).map(|k| self.at(i, k) * other.at(k, j)).sum()
        })
    }

    fn zip(&self, other: &Dense, f: impl Fn(f64, f64) -> f64) -> Dense {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        Dense::of(self.rows, self.cols, |i, j| {
            f(self.at(i, j), other.at(i, j))
        })
    }

    fn scaled(&self, factor: f64) -> Dense {
        Dense::of(self.rows, self.cols, |i, j| factor * self.at(i, j))
    }

    fn plus(&self, other: &Dense) -> Dense {
        self.zip(other, |a, b| a + b)
    }

    fn kronecker(&self, other: &Dense) -> Dense {
        Dense::of(self.rows * other.rows, self.cols * other.cols, |i, j| {
            self.at(i / other.rows, j / other.cols) * other.at(i % other.rows, j % other.cols)
        })
    }
}

/// Tensors of a checkpoint in the making, random and the same each time.
struct Maker {
    state: u32,
    dtype: DType,
    tensors: IndexMap<String, Tensor>,
}

impl Maker {
    fn new(dtype: DType) -> Maker {
        Maker {
            state: 7,
            dtype,
            tensors: IndexMap::new(),
        }
    }

    /// Adds a tensor of the module and gives its values.
    fn tensor(&mut self, name: &str, rows: usize, cols: usize) -> Dense {
        self.shaped(name, rows, cols, vec![rows, cols])
    }

    fn vector(&mut self, name: &str, len: usize) -> Dense {
        self.shaped(name, len, 1, vec![len])
    }

    fn shaped(&mut self, name: &str, rows: usize, cols: usize, shape: Vec<usize>) -> Dense {
        let mut bytes = Vec::new();
        let mut values = Vec::new();
        for _ in 0..rows * cols {
            self.state = self
                .state
                .wrapping_mul(1_664_525)
                .wrapping_add(1_013_904_223);
            let value = (self.state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            let (exact, stored) = match self.dtype {
                DType::BF16 => {
                    let v = bf16::from_f32(value);
                    (v.to_f64(), v.to_le_bytes().to_vec())
                }
                DType::F16 => {
                    let v = f16::from_f32(value);
                    (v.to_f64(), v.to_le_bytes().to_vec())
                }
                _ => (f64::from(value), value.to_le_bytes().to_vec()),
            };
            values.push(exact);
            bytes.extend(stored);
        }
        let tensor = Tensor {
            dtype: self.dtype,
            shape,
            data: bytes.into(),
        };
        self.tensors.insert(format!("base_model.{name}"), tensor);
        Dense { rows, cols, values }
    }
}

const MODULE: &str = "model.model.layers.1.mlp.down_proj";
const ROWS: usize = 64;
const COLS: usize = 128;

/// Reads a checkpoint that changes `MODULE` of llama, and compares what its rows become with what
/// the formula makes of the whole weight.
fn agrees(config: Value, maker: Maker, formula: impl Fn(&Dense) -> Dense) {
    let model = model("llama");
    let config = config.to_string();
    let adapter = Adapter::from_parts(&config, maker.tensors, &model).unwrap();
    let linear = product(&model.weights(0).layers[1], Part::Down).unwrap();
    let base: Vec<Vec<f32>> = (0..ROWS)
        .map(|row| {
            let mut values = vec![0.0; COLS];
            linear.weight.row(row, &mut values);
            values
        })
        .collect();
    let want = formula(&Dense::of(ROWS, COLS, |i, j| f64::from(base[i][j])));
    let change = adapter.layers[1].parts[Part::Down as usize]
        .as_ref()
        .unwrap();
    for (row, mut values) in base.into_iter().enumerate() {
        change.merge_row(row, &mut values);
        for (col, value) in values.into_iter().enumerate() {
            let (found, want) = (f64::from(value), want.at(row, col));
            assert!(
                (found - want).abs() <= 1e-5 * (1.0 + want.abs()),
                "{row}, {col}: {found} and not {want}"
            );
        }
    }
    let others = adapter.layers.iter().flat_map(|l| &l.parts).flatten();
    assert_eq!(others.count(), 1);
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn lora_is_b_a_times_alpha_over_rank() {
    for dtype in TYPES {
        for (stabilised, factor) in [(false, 6.0 / 4.0), (true, 6.0 / 2.0)] {
            let mut make = Maker::new(dtype);
            let a = make.tensor(&format!("{MODULE}.lora_A.weight"), 4, COLS);
            let b = make.tensor(&format!("{MODULE}.lora_B.weight"), ROWS, 4);
            let config = json!({"peft_type": "LORA", "r": 9, "lora_alpha": 1, "use_rslora": stabilised,
                "rank_pattern": {"down_proj": 4}, "alpha_pattern": {r"layers\.1\.mlp\.down_proj": 6}});
            agrees(config, make, |w| w.plus(&b.times(&a).scaled(factor)));
        }
    }
}

#[test]
fn dora_gives_each_row_its_magnitude() {
    let mut make = Maker::new(DType::F32);
    let a = make.tensor(&format!("{MODULE}.lora_A.weight"), 4, COLS);
    let b = make.tensor(&format!("{MODULE}.lora_B.weight"), ROWS, 4);
    let m = make.vector(&format!("{MODULE}.lora_magnitude_vector"), ROWS);
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 2, "use_dora": true});
    agrees(config, make, |w| {
        let v = w.plus(&b.times(&a).scaled(0.5));
        let norm = |i| (0..COLS).map(|j| v.at(i, j).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = (0..ROWS).map(norm).collect();
        Dense::of(ROWS, COLS, |i, j| m.values[i] * v.at(i, j) / norms[i])
    });
}

#[test]
fn adalora_has_singular_values_and_keeps_the_first_ranks_scaling() {
    let mut make = Maker::new(DType::F32);
    let a = make.tensor(&format!("{MODULE}.lora_A"), 3, COLS);
    let b = make.tensor(&format!("{MODULE}.lora_B"), ROWS, 3);
    let e = make.tensor(&format!("{MODULE}.lora_E"), 3, 1);
    let key = "model.layers.1.mlp.down_proj.lora_E";
    let config = json!({"peft_type": "ADALORA", "init_r": 5, "lora_alpha": 8,
        "rank_pattern": {key: [true, false, true, true, false]}});
    agrees(config, make, |w| {
        let ea = Dense::of(3, COLS, |i, j| e.values[i] * a.at(i, j));
        w.plus(&b.times(&ea).scaled(8.0 / (5.0 + 1e-5)))
    });
}

#[test]
fn ia3_scales_outputs_or_inputs() {
    let mut make = Maker::new(DType::F32);
    let l = make.tensor(&format!("{MODULE}.ia3_l"), ROWS, 1);
    let config = json!({"peft_type": "IA3", "feedforward_modules": []});
    agrees(config, make, |w| {
        Dense::of(ROWS, COLS, |i, j| w.at(i, j) * l.values[i])
    });
    for inputs in [json!(["down_proj"]), json!(r".*\.down_proj")] {
        let mut make = Maker::new(DType::F32);
        let l = make.tensor(&format!("{MODULE}.ia3_l"), 1, COLS);
        let config = json!({"peft_type": "IA3", "feedforward_modules": inputs});
        agrees(config, make, |w| {
            Dense::of(ROWS, COLS, |i, j| w.at(i, j) * l.values[j])
        });
    }
}

#[test]
fn vera_scales_shared_factors_between_and_after() {
    let mut make = Maker::new(DType::F32);
    // Made for a wider module than this one.
    let a = make.tensor("vera_A", 4, COLS + 9);
    let b = make.tensor("vera_B", ROWS + 5, 4);
    let d = make.vector(&format!("{MODULE}.vera_lambda_d"), 4);
    let l = make.vector(&format!("{MODULE}.vera_lambda_b"), ROWS);
    let config = json!({"peft_type": "VERA", "r": 4});
    agrees(config, make, |w| {
        let da = Dense::of(4, COLS, |i, j| d.values[i] * a.at(i, j));
        let lb = Dense::of(ROWS, 4, |i, j| l.values[i] * b.at(i, j));
        w.plus(&lb.times(&da))
    });
}

#[test]
fn loha_is_a_product_by_elements() {
    // Kept as pairs of factors, and as a plain matrix.
    for rank in [3, 8] {
        let mut make = Maker::new(DType::F32);
        let w1a = make.tensor(&format!("{MODULE}.hada_w1_a"), ROWS, rank);
        let w1b = make.tensor(&format!("{MODULE}.hada_w1_b"), rank, COLS);
        let w2a = make.tensor(&format!("{MODULE}.hada_w2_a"), ROWS, rank);
        let w2b = make.tensor(&format!("{MODULE}.hada_w2_b"), rank, COLS);
        let config = json!({"peft_type": "LOHA", "r": rank, "alpha": 2});
        agrees(config, make, |w| {
            let delta = w1a.times(&w1b).zip(&w2a.times(&w2b), |a, b| a * b);
            w.plus(&delta.scaled(2.0 / rank as f64))
        });
    }
}

#[test]
fn lokr_is_a_kronecker_product() {
    for (left, right) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut make = Maker::new(DType::F32);
        let mut side = |name: &str, factors: bool, rows: usize, cols: usize| match factors {
            false => make.tensor(&format!("{MODULE}.{name}"), rows, cols),
            true => {
                let a = make.tensor(&format!("{MODULE}.{name}_a"), rows, 2);
                let b = make.tensor(&format!("{MODULE}.{name}_b"), 2, cols);
                a.times(&b)
            }
        };
        let w1 = side("lokr_w1", left, 4, 8);
        let w2 = side("lokr_w2", right, 16, 16);
        let config = json!({"peft_type": "LOKR", "r": 2, "alpha": 3});
        agrees(config, make, |w| w.plus(&w1.kronecker(&w2).scaled(1.5)));
    }
}

#[test]
fn a_module_in_one_piece_changes_all_products_in_it() {
    // Phi-3 has query, key and value in one matrix, and gate and up in another.
    let model = model("phi3");
    let c = model.config();
    let (q, kv, h) = (c.heads * c.head_dim, c.kv_heads * c.head_dim, c.hidden);
    let (name, all) = ("model.model.layers.0.self_attn.qkv_proj", q + 2 * kv);
    for method in ["LORA", "LOKR"] {
        let mut make = Maker::new(DType::F32);
        let (config, delta) = match method {
            "LORA" => {
                let a = make.tensor(&format!("{name}.lora_A.weight"), 2, h);
                let b = make.tensor(&format!("{name}.lora_B.weight"), all, 2);
                (
                    json!({"peft_type": method, "r": 2, "lora_alpha": 2}),
                    b.times(&a),
                )
            }
            _ => {
                let left = make.tensor(&format!("{name}.lokr_w1"), 4, 4);
                let right = make.tensor(&format!("{name}.lokr_w2"), all / 4, h / 4);
                (
                    json!({"peft_type": method, "r": 1, "alpha": 1}),
                    left.kronecker(&right),
                )
            }
        };
        let adapter = Adapter::from_parts(&config.to_string(), make.tensors, &model).unwrap();
        for (part, start, rows) in [(Part::Q, 0, q), (Part::K, q, kv), (Part::V, q + kv, kv)] {
            let change = adapter.layers[0].parts[part as usize].as_ref().unwrap();
            for row in 0..rows {
                let mut values = vec![0.0; h];
                change.merge_row(row, &mut values);
                for (col, value) in values.iter().enumerate() {
                    let want = delta.at(start + row, col);
                    assert!(
                        (f64::from(*value) - want).abs() < 1e-5,
                        "{part:?} {row} {col}"
                    );
                }
            }
        }
    }
}

#[test]
fn biases_and_norms_that_were_trained_along_replace_the_models() {
    let mut make = Maker::new(DType::F32);
    make.tensor(&format!("{MODULE}.lora_A.weight"), 2, COLS);
    make.tensor(&format!("{MODULE}.lora_B.weight"), ROWS, 2);
    let bias = make.vector(&format!("{MODULE}.base_layer.bias"), ROWS);
    let added = make.vector(&format!("{MODULE}.lora_B.bias"), ROWS);
    let norm = make.vector("model.model.norm.weight", 64);
    let config =
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 1, "bias": "all", "lora_bias": true});
    let adapter = Adapter::from_parts(&config.to_string(), make.tensors, &model("llama")).unwrap();
    let change = adapter.layers[1].parts[Part::Down as usize]
        .as_ref()
        .unwrap();
    for (i, value) in change.bias.as_ref().unwrap().iter().enumerate() {
        assert_eq!(*value, bias.values[i] as f32 + 0.5 * added.values[i] as f32);
    }
    for (value, want) in adapter.norm.unwrap().iter().zip(norm.values) {
        assert_eq!(*value, want as f32);
    }
}

#[test]
fn gemmas_norms_count_from_one() {
    let mut make = Maker::new(DType::F32);
    let name = "model.model.layers.2.post_feedforward_layernorm.ln_tuning_layers.weight";
    let norm = make.vector(name, 64);
    let config = json!({"peft_type": "LN_TUNING"}).to_string();
    let adapter = Adapter::from_parts(&config, make.tensors, &model("gemma2")).unwrap();
    let found = adapter.layers[2].norms[super::NormPart::PostFeedForward as usize].as_ref();
    for (value, want) in found.unwrap().iter().zip(norm.values) {
        assert_eq!(*value, want as f32 + 1.0);
    }
}

#[test]
fn ia3_scales_a_bias_with_its_output() {
    let mut make = Maker::new(DType::F32);
    let base = model("qwen2");
    let rows = base.config().kv_heads * base.config().head_dim;
    let l = make.tensor("model.model.layers.0.self_attn.v_proj.ia3_l", rows, 1);
    let config = json!({"peft_type": "IA3", "feedforward_modules": ["down_proj"]}).to_string();
    let adapter = Adapter::from_parts(&config, make.tensors, &base).unwrap();
    let change = adapter.layers[0].parts[Part::V as usize].as_ref().unwrap();
    let own = product(&base.weights(0).layers[0], Part::V).unwrap();
    let own = own.bias.as_ref().unwrap();
    for (i, value) in change.bias.as_ref().unwrap().iter().enumerate() {
        assert_eq!(*value, own[i] * l.values[i] as f32);
    }
}

#[test]
fn layers_of_vera_share_their_factors() {
    let mut make = Maker::new(DType::F32);
    make.tensor("vera_A", 4, COLS);
    make.tensor("vera_B", ROWS, 4);
    for layer in 0..3 {
        let module = format!("model.model.layers.{layer}.mlp.down_proj");
        make.vector(&format!("{module}.vera_lambda_d"), 4);
        make.vector(&format!("{module}.vera_lambda_b"), ROWS);
    }
    let config = json!({"peft_type": "VERA", "r": 4}).to_string();
    let adapter = Adapter::from_parts(&config, make.tensors, &model("llama")).unwrap();
    assert_eq!(adapter.bytes(), 4 * (4 * COLS + 4 * ROWS + 3 * (4 + ROWS)));
}

/// A LoRA checkpoint of `MODULE`, to be spoilt.
fn sound() -> (Value, Maker) {
    let mut make = Maker::new(DType::F32);
    make.tensor(&format!("{MODULE}.lora_A.weight"), 4, COLS);
    make.tensor(&format!("{MODULE}.lora_B.weight"), ROWS, 4);
    let config = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8,
        "base_model_name_or_path": "some/base"});
    (config, make)
}

fn error(config: &str, maker: Maker, base: &str) -> String {
    let error: AdapterError = Adapter::from_parts(config, maker.tensors, &model(base)).unwrap_err();
    println!("{error}");
    error.to_string()
}

#[test]
fn wrong_configurations_are_refused_by_field() {
    let cases = [
        (
            "peft_type",
            json!("MEGALORA"),
            "\"MEGALORA\" is not known; known are LORA, ADALORA",
        ),
        ("peft_type", json!(null), "peft_type is missing"),
        ("peft_type", json!(3), "peft_type is 3"),
        ("r", json!(null), "r is missing"),
        ("r", json!(0), "r is 0; it must be 1 to"),
        ("r", json!(1e30), "r is 1e+30"),
        (
            "r",
            json!(8),
            "is of rank 4; adapter_config.json makes it 8",
        ),
        (
            "rank_pattern",
            json!({"down_proj": 2}),
            "is of rank 4; adapter_config.json makes it 2",
        ),
        ("rank_pattern", json!([1]), "rank_pattern is [1]"),
        ("rank_pattern", json!({"(": 2}), "rank_pattern"),
        ("lora_alpha", json!("x"), "lora_alpha is \"x\""),
        ("use_rslora", json!(2), "use_rslora is 2"),
        ("use_dora", json!(true), "and no lora_magnitude_vector"),
        (
            "use_qalora",
            json!(true),
            "use_qalora is true, which is not supported",
        ),
        (
            "alora_invocation_tokens",
            json!([1, 2]),
            "alora_invocation_tokens is [1,2]",
        ),
        (
            "init_lora_weights",
            json!("pissa_niter_4"),
            "changes the base's weights",
        ),
    ];
    for (field, value, expected) in cases {
        let (mut config, maker) = sound();
        config[field] = value;
        let error = error(&config.to_string(), maker, "llama");
        let expected = expected.replace("has no lora", "and no lora");
        assert!(
            error.contains(&expected),
            "{error:?} says nothing of {expected:?}"
        );
    }
    for text in ["", "[]", "{", "null"] {
        let (_, maker) = sound();
        assert!(error(text, maker, "llama").contains("not a JSON object"));
    }
    let (_, maker) = sound();
    assert!(error(&" ".repeat(1 << 21), maker, "llama").contains("at most"));
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    type Spoil = fn(&mut Maker);
    let cases: [(Spoil, &str, &[&str]); 14] = [
        (
            |m| drop(m.tensors.pop()),
            "llama",
            &["lora_A.weight and no lora_B.weight"],
        ),
        (
            |m| drop(m.tensors.shift_remove_index(0)),
            "llama",
            &["lora_B.weight and no lora_A.weight"],
        ),
        (
            |m| drop(m.tensor(&format!("{MODULE}.lora_C.weight"), 1, 1)),
            "llama",
            &["lora_C.weight", "not one that LoRA uses"],
        ),
        (
            |m| drop(m.tensor("model.prompt_x", 1, 1)),
            "llama",
            &["prompt_x", "not one that LoRA uses"],
        ),
        (
            |m| drop(m.tensor(&format!("{MODULE}.lora_A.weight"), 4, 96)),
            "llama",
            &[
                "lora_A",
                "[4, 96]",
                "[4, 128]",
                "another base",
                "\"some/base\"",
            ],
        ),
        (
            |m| drop(m.tensor(&format!("{MODULE}.lora_B.weight"), 80, 4)),
            "llama",
            &["lora_B", "[80, 4]", "[64, 4]", "another base"],
        ),
        (
            |m| drop(m.tensor(&format!("{MODULE}.lora_B.weight"), ROWS, 5)),
            "llama",
            &["lora_B", "rank 5"],
        ),
        (
            |m| drop(m.vector(&format!("{MODULE}.lora_B.weight"), ROWS)),
            "llama",
            &["lora_B", "two dimensions"],
        ),
        (
            |m| drop(m.tensor("model.model.layers.7.mlp.up_proj.lora_A.weight", 4, 64)),
            "llama",
            &["layer 7", "the model has 3", "\"some/base\""],
        ),
        (
            |m| drop(m.tensor("model.model.layers.0.mlp.fc1.lora_A.weight", 4, 64)),
            "llama",
            &["mlp.fc1", "llama does not have"],
        ),
        (
            |m| drop(m.tensor("model.score.weight", 4, 64)),
            "llama",
            &["score", "llama does not have"],
        ),
        (
            |m| drop(m.tensor("model.lm_head.weight", 512, 64)),
            "llama",
            &["lm_head.weight", "not supported"],
        ),
        (
            |m| drop(m.tensor("model.model.layers.0.mlp.experts.1.w1.lora_A.weight", 4, 64)),
            "mixtral",
            &["experts", "not supported"],
        ),
        (
            |m| {
                drop(m.tensor(
                    "model.model.layers.0.self_attn.kv_b_proj.lora_A.weight",
                    4,
                    64,
                ))
            },
            "deepseek-v2",
            &["latent attention", "not supported"],
        ),
    ];
    for (spoil, base, expected) in cases {
        let (config, mut maker) = sound();
        if base != "llama" {
            maker.tensors.clear();
        }
        spoil(&mut maker);
        let error = error(&config.to_string(), maker, base);
        for expected in expected {
            assert!(
                error.contains(expected),
                "{error:?} says nothing of {expected:?}"
            );
        }
    }
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (config, mut maker) = sound();
        let tensor = &mut maker.tensors[1];
        let mut bytes = tensor.data.to_vec();
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&bad.to_le_bytes());
        tensor.data = bytes.into();
        let error = error(&config.to_string(), maker, "llama");
        assert!(
            error.contains("lora_B") && error.contains("not numbers"),
            "{error}"
        );
    }
    let (config, mut maker) = sound();
    maker.tensors[0].dtype = DType::Q8_0;
    assert!(error(&config.to_string(), maker, "llama").contains("f32, f16 and bf16"));
    let (config, mut maker) = sound();
    maker.tensors[0].shape = vec![usize::MAX, usize::MAX, 2];
    assert!(error(&config.to_string(), maker, "llama").contains("cannot have"));
}

#[test]
fn a_checkpoint_that_changes_nothing_is_none() {
    let (config, mut maker) = sound();
    maker.tensors.clear();
    assert!(error(&config.to_string(), maker, "llama").contains("no tensor that LoRA uses"));
}

#[test]
fn embeddings_that_were_saved_along_must_be_the_models() {
    let model = model("llama");
    let (config, mut maker) = sound();
    let mut bytes = Vec::new();
    for token in 0..512 {
        let mut row = vec![0.0; 64];
        model.weights(0).embedding(token, &mut row);
        bytes.extend(row.iter().flat_map(|v| v.to_le_bytes()));
    }
    let name = "base_model.model.model.embed_tokens.base_layer.weight";
    let saved = |bytes: Vec<u8>| Tensor {
        dtype: DType::F32,
        shape: vec![512, 64],
        data: bytes.into(),
    };
    maker.tensors.insert(name.into(), saved(bytes.clone()));
    Adapter::from_parts(&config.to_string(), maker.tensors, &model).unwrap();

    bytes[3] ^= 1;
    let (config, mut maker) = sound();
    maker.tensors.insert(name.into(), saved(bytes));
    assert!(error(&config.to_string(), maker, "llama").contains("embed_tokens"));
}
