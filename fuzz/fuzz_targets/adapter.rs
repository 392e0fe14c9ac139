//! Any fields and tensors as an adapter of a small model: an error, or an adapter that takes no
//! more memory than the model's matrices allow.
#![no_main]

use std::fmt::Write;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use indexmap::IndexMap;
use libfuzzer_sys::fuzz_target;
use sedge_formats::gguf::{TensorPlan, write_to};
use sedge_formats::safetensors::Tensor;
use sedge_kernels::DType;
use sedge_models::{Adapter, AdapterFacts, Decoder, Model, config, open_bytes};

#[derive(Debug, Arbitrary)]
struct Checkpoint {
    method: u8,
    /// Most checkpoints state a rank that their tensors have.
    rank: u8,
    fields: Vec<(u8, Value)>,
    tensors: Vec<Stored>,
}

#[derive(Debug, Arbitrary)]
enum Value {
    Null,
    Flag(bool),
    Whole(i64),
    Number(f64),
    Text(String),
    Texts(Vec<String>),
    Object(Vec<(String, u8)>),
}

#[derive(Debug, Arbitrary)]
struct Stored {
    module: u8,
    field: u8,
    /// Beside those of the table.
    name: Option<String>,
    dtype: u8,
    shape: Vec<Size>,
    fill: f32,
}

/// Sizes of the model, the rank, or others.
#[derive(Debug, Arbitrary)]
enum Size {
    Rank,
    One,
    Hidden,
    Inner,
    KeyValue,
    Vocabulary,
    Free(u8),
}

const METHODS: [&str; 10] = [
    "LORA",
    "ADALORA",
    "IA3",
    "VERA",
    "LOHA",
    "LOKR",
    "LN_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "P_TUNING",
];

const FIELDS: [&str; 16] = [
    "r",
    "init_r",
    "lora_alpha",
    "alpha",
    "use_dora",
    "use_rslora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "feedforward_modules",
    "num_virtual_tokens",
    "base_model_name_or_path",
    "init_lora_weights",
    "num_transformer_submodules",
    "bias",
    "peft_type",
];

const MODULES: [&str; 12] = [
    "base_model.model.model.layers.0.self_attn.q_proj",
    "base_model.model.model.layers.1.self_attn.k_proj",
    "base_model.model.model.layers.0.self_attn.v_proj",
    "base_model.model.model.layers.0.self_attn.o_proj",
    "base_model.model.model.layers.0.mlp.gate_up_proj",
    "base_model.model.model.layers.0.mlp.down_proj",
    "base_model.model.model.layers.1.mlp.up_proj",
    "base_model.model.model.layers.0.input_layernorm",
    "base_model.model.model.norm",
    "base_model.model.model.embed_tokens",
    "base_model.model.lm_head",
    "base_model",
];

const TENSORS: [&str; 28] = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_A",
    "lora_B",
    "lora_E",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
    "ia3_l",
    "vera_A",
    "vera_B",
    "vera_lambda_d",
    "vera_lambda_b",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "ln_tuning_layers.weight",
    "base_layer.weight",
    "weight",
    "bias",
];

const HIDDEN: usize = 8;
const INNER: usize = 12;
const KEY_VALUE: usize = 4;
const VOCABULARY: usize = 20;

/// Two layers of llama, whose rows of queries and keys are in GGUF's order.
static MODEL: LazyLock<Decoder> = LazyLock::new(|| {
    let text = r#"{"model_type": "llama", "vocab_size": 20, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu"}"#;
    let config = config::from_hf(text).expect("a sound configuration");
    let mut plans = vec![
        ("token_embd.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("output_norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..2 {
        for (part, shape) in [
            ("attn_norm", vec![HIDDEN]),
            ("attn_q", vec![HIDDEN, HIDDEN]),
            ("attn_k", vec![KEY_VALUE, HIDDEN]),
            ("attn_v", vec![KEY_VALUE, HIDDEN]),
            ("attn_output", vec![HIDDEN, HIDDEN]),
            ("ffn_norm", vec![HIDDEN]),
            ("ffn_gate", vec![INNER, HIDDEN]),
            ("ffn_up", vec![INNER, HIDDEN]),
            ("ffn_down", vec![HIDDEN, INNER]),
        ] {
            plans.push((format!("blk.{layer}.{part}.weight"), shape));
        }
    }
    let plan = |(name, shape)| TensorPlan {
        name,
        dtype: DType::F32,
        shape,
    };
    let plans: Vec<TensorPlan> = plans.into_iter().map(plan).collect();
    let mut file = Vec::new();
    let fill = |i: usize| {
        let values = plans[i].shape.iter().product::<usize>();
        let each = (0..values).flat_map(|v| (v as f32).sin().to_le_bytes());
        std::io::Result::Ok(each.collect())
    };
    write_to(&mut file, &config::to_gguf(&config), &plans, fill).expect("a vector takes all");
    match open_bytes(file.into(), "small")
        .expect("a sound file")
        .model
    {
        Model::Decoder(model) => model,
        Model::Encoder(_) => unreachable!("llama is a decoder"),
    }
});

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Flag(flag) => (*flag).into(),
        Value::Whole(number) => (*number).into(),
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
        Value::Texts(texts) => texts.clone().into(),
        Value::Object(pairs) => {
            let pair = |(key, value): &(String, u8)| (key.clone(), (*value).into());
            serde_json::Value::Object(pairs.iter().map(pair).collect())
        }
    }
}

fuzz_target!(|input: Checkpoint| {
    let rank = usize::from(input.rank % 5);
    let mut config = serde_json::json!({
        "peft_type": METHODS[usize::from(input.method) % METHODS.len()],
        "r": rank, "init_r": rank, "lora_alpha": 2, "alpha": 2, "num_virtual_tokens": rank,
    });
    for (field, value) in &input.fields {
        config[FIELDS[usize::from(*field) % FIELDS.len()]] = json(value);
    }
    let mut tensors = IndexMap::new();
    for stored in &input.tensors {
        let size = |size: &Size| match size {
            Size::Rank => rank,
            Size::One => 1,
            Size::Hidden => HIDDEN,
            Size::Inner => INNER,
            Size::KeyValue => KEY_VALUE,
            Size::Vocabulary => VOCABULARY,
            Size::Free(size) => usize::from(size % 32),
        };
        let shape: Vec<usize> = stored.shape.iter().take(3).map(size).collect();
        let values = shape.iter().product::<usize>();
        let dtype = [DType::F32, DType::F16, DType::BF16][usize::from(stored.dtype) % 3];
        let data = match dtype {
            DType::F32 => stored.fill.to_le_bytes().repeat(values),
            _ => ((stored.fill.to_bits() >> 16) as u16)
                .to_le_bytes()
                .repeat(values),
        };
        let name = stored.name.clone().unwrap_or_else(|| {
            let module = MODULES[usize::from(stored.module) % MODULES.len()];
            format!(
                "{module}.{}",
                TENSORS[usize::from(stored.field) % TENSORS.len()]
            )
        });
        let data = data.into();
        tensors.insert(name, Tensor { dtype, shape, data });
    }
    let given: usize = tensors.values().map(|t| t.data.len()).sum();
    let text = config.to_string();
    let facts = AdapterFacts::of(&text, &tensors);
    match Adapter::from_parts(&text, tensors, &MODEL) {
        Ok(adapter) => {
            assert!(facts.is_ok());
            // Each of 19 matrices has up to 20 × 12 values, and may be expanded to f32.
            assert!(adapter.bytes() <= 8 * given + 19 * 20 * 12 * 16);
        }
        Err(error) => {
            let mut shown = String::new();
            write!(shown, "{error}").expect("a text takes all");
            assert!(!shown.is_empty());
        }
    }
});
