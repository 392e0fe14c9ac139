//! Adapters with small random values, in PEFT's layout.
//! Each changes what it acts on by about a tenth, whatever its rank and scaling.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use sedge_kernels::{DType, Weight, quantize};
use serde_json::{Value, json};

use super::{Random, SynthError, SynthReport, seeded};
use crate::Architecture;
use crate::adapter::{NormPart, Part, paired_head, product};
use crate::convert::halves_row;
use crate::decoder::Decoder;

/// What a random adapter should be like.
#[derive(Debug, Clone)]
pub struct AdapterPlan {
    /// One of [`synth_methods`].
    pub method: String,
    /// Rank, of methods that have one.
    pub rank: usize,
    /// The scaling's numerator, of methods that have one.
    pub alpha: f32,
    /// Modules by the last part of their names; all that the method can change if empty.
    pub targets: Vec<String>,
    /// Positions before every prompt, of methods that put some there.
    pub positions: usize,
    /// f32, f16 or bf16.
    pub dtype: DType,
    /// Start of the random numbers.
    pub seed: u64,
    /// The base's name in the checkpoint.
    pub base: String,
}

/// Methods that there are random adapters of.
pub fn synth_methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().map(|(name, ..)| *name)
}

type Make = fn(&Writer<'_>, &Module, &mut Vec<Planned>);

/// Name here, `peft_type`, and the tensors of a module, where there are modules.
const METHODS: [(&str, &str, Make); 11] = [
    ("lora", "LORA", |w, m, out| w.lora(m, out)),
    ("dora", "LORA", |w, m, out| w.dora(m, out)),
    ("adalora", "ADALORA", |w, m, out| w.adalora(m, out)),
    ("ia3", "IA3", |w, m, out| w.ia3(m, out)),
    ("vera", "VERA", |w, m, out| w.vera(m, out)),
    ("loha", "LOHA", |w, m, out| w.loha(m, out)),
    ("lokr", "LOKR", |w, m, out| w.lokr(m, out)),
    ("ln", "LN_TUNING", |w, m, out| w.norm(m, out)),
    ("prefix", "PREFIX_TUNING", |_, _, _| {}),
    ("prompt", "PROMPT_TUNING", |_, _, _| {}),
    ("ptuning", "P_TUNING", |_, _, _| {}),
];

/// How much of its base an adapter changes.
const SHARE: f32 = 0.1;

/// Largest rank and most positions.
const LIMIT: usize = 1 << 12;

/// A module of the Hugging Face implementation.
#[derive(Debug, Clone)]
struct Module {
    /// `model.layers.0.self_attn.q_proj`.
    name: String,
    rows: usize,
    cols: usize,
    layer: usize,
    /// Root of the mean square of some of its values.
    size: f32,
    of: Of,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    /// Several where the implementation has them in one.
    Products(&'static [Part]),
    Norm(NormPart),
    LastNorm,
}

/// A tensor to write.
struct Planned {
    name: String,
    shape: Vec<usize>,
    values: Values,
}

/// How a tensor's values come about.
enum Values {
    /// Normal, of this mean and deviation.
    Normal { mean: f32, deviation: f32 },
    /// Others.
    Given(Vec<f32>),
    /// The sizes of a module's rows, nearly.
    Norms(Module),
}

struct Writer<'a> {
    model: &'a Decoder,
    plan: &'a AdapterPlan,
}

/// Writes a random adapter of the model into the folder `output`: `adapter_config.json` and
/// `adapter_model.safetensors`. Equal plans give equal files.
///
/// # Errors
/// When the plan makes no adapter of this model, or the files cannot be written.
pub fn synth_adapter(
    model: &Decoder,
    plan: &AdapterPlan,
    output: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<SynthReport, SynthError> {
    let Some(&(method, peft_type, make)) = METHODS.iter().find(|m| m.0 == plan.method) else {
        return Err(SynthError::Method {
            found: plan.method.clone(),
            known: synth_methods().collect::<Vec<_>>().join(", "),
        });
    };
    check(plan)?;
    let writer = Writer { model, plan };
    let modules = writer.modules(method)?;
    let mut planned = Vec::new();
    writer.shared(method, &modules, &mut planned)?;
    for module in &modules {
        make(&writer, module, &mut planned);
    }
    let config = writer.config(method, peft_type, &modules);
    let failed = |source: io::Error| SynthError::Write {
        path: output.display().to_string(),
        source,
    };
    std::fs::create_dir_all(output).map_err(failed)?;
    let report = writer.write(
        &output.join("adapter_model.safetensors"),
        &planned,
        progress,
    );
    let report = report.map_err(failed)?;
    let text = serde_json::to_string_pretty(&config).map_err(io::Error::from);
    let path = output.join("adapter_config.json");
    let put = text.and_then(|text| {
        sedge_formats::replace(&path, |file| file.write_all(format!("{text}\n").as_bytes()))
    });
    put.map_err(failed)?;
    Ok(report)
}

fn check(plan: &AdapterPlan) -> Result<(), SynthError> {
    if !matches!(plan.dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Err(SynthError::Type { dtype: plan.dtype });
    }
    for (what, found) in [("rank", plan.rank), ("positions", plan.positions)] {
        if found == 0 || found > LIMIT {
            return Err(SynthError::Number {
                what,
                found: found.to_string(),
                expected: "1 to 4096",
            });
        }
    }
    match plan.alpha.is_finite() && plan.alpha > 0.0 {
        true => Ok(()),
        false => Err(SynthError::Number {
            what: "alpha",
            found: plan.alpha.to_string(),
            expected: "more than 0",
        }),
    }
}

impl Writer<'_> {
    /// Modules that the method can change in this model and that were asked for.
    fn modules(&self, method: &'static str) -> Result<Vec<Module>, SynthError> {
        let all: Vec<Module> = match method {
            "ln" => self.norms(),
            "prefix" | "prompt" | "ptuning" => Vec::new(),
            _ => self.products(),
        };
        let last = |m: &Module| m.name.rsplit('.').next().unwrap_or_default().to_string();
        let targets = &self.plan.targets;
        let named = |target: &&String| !all.iter().any(|m| last(m) == **target);
        if let Some(found) = targets.iter().find(named) {
            let mut known: Vec<String> = all.iter().map(last).collect();
            known.sort();
            known.dedup();
            return Err(SynthError::Target {
                method,
                found: found.clone(),
                known: match known.is_empty() {
                    true => "no module".into(),
                    false => known.join(", "),
                },
            });
        }
        let wanted = |m: &Module| targets.is_empty() || targets.contains(&last(m));
        Ok(all.into_iter().filter(wanted).collect())
    }

    fn products(&self) -> Vec<Module> {
        const APART: [(&str, &[Part]); 7] = [
            ("self_attn.q_proj", &[Part::Q]),
            ("self_attn.k_proj", &[Part::K]),
            ("self_attn.v_proj", &[Part::V]),
            ("self_attn.o_proj", &[Part::Output]),
            ("mlp.gate_proj", &[Part::Gate]),
            ("mlp.up_proj", &[Part::Up]),
            ("mlp.down_proj", &[Part::Down]),
        ];
        const FUSED: [(&str, &[Part]); 4] = [
            ("self_attn.qkv_proj", &[Part::Q, Part::K, Part::V]),
            ("self_attn.o_proj", &[Part::Output]),
            ("mlp.gate_up_proj", &[Part::Gate, Part::Up]),
            ("mlp.down_proj", &[Part::Down]),
        ];
        let names: &[(&str, &'static [Part])] = match self.model.config().architecture {
            Architecture::Phi3 => &FUSED,
            _ => &APART,
        };
        let mut modules = Vec::new();
        for (layer, weights) in self.model.weights(0).layers.iter().enumerate() {
            for &(name, parts) in names {
                // Experts and latent attention are left out.
                let each: Result<Vec<_>, _> = parts.iter().map(|p| product(weights, *p)).collect();
                let Ok(each) = each else { continue };
                modules.push(Module {
                    name: format!("model.layers.{layer}.{name}"),
                    rows: each.iter().map(|l| l.weight.rows()).sum(),
                    cols: each[0].weight.cols(),
                    layer,
                    size: size(&each[0].weight),
                    of: Of::Products(parts),
                });
            }
        }
        modules
    }

    fn norms(&self) -> Vec<Module> {
        let c = self.model.config();
        let of_norm = |name: String, layer: usize, of: Of| Module {
            name,
            rows: c.hidden,
            cols: 1,
            layer,
            size: 1.0,
            of,
        };
        let mut modules = Vec::new();
        for (layer, weights) in self.model.weights(0).layers.iter().enumerate() {
            let mut put = |name: &str, part| {
                let name = format!("model.layers.{layer}.{name}");
                modules.push(of_norm(name, layer, Of::Norm(part)));
            };
            put("input_layernorm", NormPart::Attention);
            match &weights.post_attention_norm {
                None => put("post_attention_layernorm", NormPart::FeedForward),
                Some(_) => {
                    put("post_attention_layernorm", NormPart::PostAttention);
                    put("pre_feedforward_layernorm", NormPart::FeedForward);
                    put("post_feedforward_layernorm", NormPart::PostFeedForward);
                }
            }
        }
        modules.push(of_norm("model.norm".into(), 0, Of::LastNorm));
        modules
    }

    /// Tensors that belong to no module.
    fn shared(
        &self,
        method: &'static str,
        modules: &[Module],
        out: &mut Vec<Planned>,
    ) -> Result<(), SynthError> {
        let c = self.model.config();
        let positions = self.plan.positions;
        match method {
            "vera" => {
                let most = |size: fn(&Module) -> usize| modules.iter().map(size).max().unwrap_or(1);
                let (rows, cols) = (most(|m| m.rows), most(|m| m.cols));
                let (rank, even) = (self.plan.rank, |n: usize| (n as f32).sqrt().recip());
                out.push(normal("base_model.vera_A", &[rank, cols], even(cols)));
                out.push(normal("base_model.vera_B", &[rows, rank], even(rank)));
            }
            "prefix" if c.latent.is_some() => {
                return Err(SynthError::Target {
                    method,
                    found: "keys and values".into(),
                    known: "none of latent attention".into(),
                });
            }
            "prefix" => {
                let each = 2 * c.layers.len() * c.kv_heads * c.head_dim;
                out.push(normal("prompt_embeddings", &[positions, each], SHARE));
            }
            "prompt" | "ptuning" => {
                // Of the size that the first layer reads.
                let mut row = vec![0.0; c.hidden];
                self.model.weights(0).embedding(0, &mut row);
                let square = row.iter().map(|v| v * v).sum::<f32>() / c.hidden as f32;
                let size = square.sqrt().max(1e-3) * c.embedding_scale;
                out.push(normal("prompt_embeddings", &[positions, c.hidden], size));
            }
            _ => {}
        }
        Ok(())
    }

    /// `A` keeps the size of its inputs, and `B` makes the product a share of the weight's.
    fn factors(&self, module: &Module, fields: [&str; 2], scale: f32, out: &mut Vec<Planned>) {
        let rank = self.plan.rank;
        let even = (module.cols as f32).sqrt().recip();
        let small = SHARE * module.size / (even * scale * (rank as f32).sqrt());
        let [a, b] = fields;
        out.push(normal(&tensor(module, a), &[rank, module.cols], even));
        out.push(normal(&tensor(module, b), &[module.rows, rank], small));
    }

    fn scale(&self) -> f32 {
        self.plan.alpha / self.plan.rank as f32
    }

    fn lora(&self, module: &Module, out: &mut Vec<Planned>) {
        self.factors(
            module,
            ["lora_A.weight", "lora_B.weight"],
            self.scale(),
            out,
        );
    }

    fn dora(&self, module: &Module, out: &mut Vec<Planned>) {
        self.lora(module, out);
        out.push(Planned {
            name: tensor(module, "lora_magnitude_vector"),
            shape: vec![module.rows],
            values: Values::Norms(module.clone()),
        });
    }

    fn adalora(&self, module: &Module, out: &mut Vec<Planned>) {
        self.factors(module, ["lora_A", "lora_B"], self.scale(), out);
        out.push(normal(&tensor(module, "lora_E"), &[self.plan.rank, 1], 1.0));
    }

    fn ia3(&self, module: &Module, out: &mut Vec<Planned>) {
        let shape = match module.name.ends_with("down_proj") {
            true => [1, module.cols],
            false => [module.rows, 1],
        };
        out.push(Planned {
            name: tensor(module, "ia3_l"),
            shape: shape.to_vec(),
            values: Values::Normal {
                mean: 1.0,
                deviation: SHARE,
            },
        });
    }

    fn vera(&self, module: &Module, out: &mut Vec<Planned>) {
        let d = tensor(module, "vera_lambda_d");
        out.push(normal(&d, &[self.plan.rank], 1.0));
        let b = tensor(module, "vera_lambda_b");
        let small = SHARE * module.size * (module.cols as f32).sqrt();
        out.push(normal(&b, &[module.rows], small));
    }

    fn loha(&self, module: &Module, out: &mut Vec<Planned>) {
        let rank = self.plan.rank;
        // Two products of size 1, of which each is a sum over the rank.
        let even = (rank as f32).powf(-0.25);
        let small = SHARE * module.size / self.scale();
        for (field, rows, cols, size) in [
            ("hada_w1_a", module.rows, rank, even * small),
            ("hada_w1_b", rank, module.cols, even),
            ("hada_w2_a", module.rows, rank, even),
            ("hada_w2_b", rank, module.cols, even),
        ] {
            out.push(normal(&tensor(module, field), &[rows, cols], size));
        }
    }

    fn lokr(&self, module: &Module, out: &mut Vec<Planned>) {
        let rank = self.plan.rank;
        let ((l, k), (m, n)) = (split(module.rows), split(module.cols));
        let small = SHARE * module.size / self.scale();
        out.push(normal(&tensor(module, "lokr_w1"), &[l, m], 1.0));
        // As PEFT does: in factors where those are smaller.
        match 2 * rank < k.max(n) {
            true => {
                let even = (rank as f32).sqrt().recip();
                let b = tensor(module, "lokr_w2_b");
                out.push(normal(
                    &tensor(module, "lokr_w2_a"),
                    &[k, rank],
                    even * small,
                ));
                out.push(normal(&b, &[rank, n], 1.0));
            }
            false => out.push(normal(&tensor(module, "lokr_w2"), &[k, n], small)),
        }
    }

    fn norm(&self, module: &Module, out: &mut Vec<Planned>) {
        let weights = self.model.weights(0);
        let of = weights.layers.get(module.layer);
        let own = match module.of {
            Of::LastNorm => Some(&weights.norm),
            Of::Norm(NormPart::Attention) => of.map(|l| &l.attention_norm),
            Of::Norm(NormPart::FeedForward) => of.map(|l| &l.ffn_norm),
            Of::Norm(NormPart::PostAttention) => of.and_then(|l| l.post_attention_norm.as_ref()),
            Of::Norm(NormPart::PostFeedForward) => of.and_then(|l| l.post_ffn_norm.as_ref()),
            Of::Norm(NormPart::Query | NormPart::Key) | Of::Products(_) => None,
        };
        let own = own.cloned().unwrap_or_default();
        // Gemma's checkpoints count from 1.
        let less = match self.model.config().architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => 1.0,
            _ => 0.0,
        };
        let name = tensor(module, "ln_tuning_layers.weight");
        let mut random = seeded(self.plan.seed, &name);
        let near = own
            .iter()
            .map(|v| v * (1.0 + SHARE * random.normal()) - less);
        out.push(Planned {
            shape: vec![own.len()],
            values: Values::Given(near.collect()),
            name,
        });
    }

    /// Norms of the module's rows, in its own order, each off by a hundredth or so.
    fn magnitudes(&self, module: &Module, random: &mut Random) -> Vec<f32> {
        let mut norms = vec![0.0; module.rows];
        let Of::Products(parts) = module.of else {
            return norms;
        };
        let mut start = 0;
        for &part in parts {
            let layer = &self.model.weights(0).layers[module.layer];
            let Ok(linear) = product(layer, part) else {
                continue;
            };
            let head = match part {
                Part::Q | Part::K => paired_head(self.model.config()),
                _ => None,
            };
            let mut values = vec![0.0; linear.weight.cols()];
            for row in 0..linear.weight.rows() {
                linear.weight.row(row, &mut values);
                let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
                let source = start + head.map_or(row, |head| halves_row(row, head));
                // A row of zeros has no direction that a magnitude could scale.
                norms[source] = norm.max(1e-6) * (1.0 + SHARE * SHARE * random.normal());
            }
            start += linear.weight.rows();
        }
        norms
    }

    fn config(&self, method: &str, peft_type: &str, modules: &[Module]) -> Value {
        let plan = self.plan;
        let c = self.model.config();
        let mut names: Vec<&str> = modules
            .iter()
            .filter_map(|m| m.name.rsplit('.').next())
            .collect();
        names.sort_unstable();
        names.dedup();
        let mut config = json!({
            "base_model_name_or_path": plan.base,
            "inference_mode": true,
            "peft_type": peft_type,
            "task_type": "CAUSAL_LM",
        });
        let own = match method {
            "lora" | "dora" => json!({"r": plan.rank, "lora_alpha": plan.alpha, "bias": "none",
                "use_dora": method == "dora", "use_rslora": false, "lora_dropout": 0.0}),
            "adalora" => json!({"r": plan.rank, "init_r": plan.rank, "target_r": plan.rank,
                "lora_alpha": plan.alpha, "bias": "none", "rank_pattern": null}),
            "ia3" => {
                let inner: Vec<&&str> = names.iter().filter(|n| **n == "down_proj").collect();
                json!({"feedforward_modules": inner})
            }
            "vera" => json!({"r": plan.rank, "save_projection": true, "bias": "none",
                "projection_prng_key": 0, "d_initial": 0.1}),
            "loha" => json!({"r": plan.rank, "alpha": plan.alpha}),
            "lokr" => json!({"r": plan.rank, "alpha": plan.alpha, "decompose_both": false,
                "decompose_factor": -1}),
            "ln" => json!({}),
            _ => {
                let (width, heads) = match method {
                    "prefix" => (c.kv_heads * c.head_dim, c.kv_heads),
                    _ => (c.hidden, c.heads),
                };
                json!({"num_virtual_tokens": plan.positions, "num_layers": c.layers.len(),
                    "num_attention_heads": heads, "num_transformer_submodules": 1,
                    "token_dim": width})
            }
        };
        let target = (!modules.is_empty()).then(|| json!({"target_modules": names}));
        for more in [Some(own), target].into_iter().flatten() {
            for (key, value) in more.as_object().into_iter().flatten() {
                config[key] = value.clone();
            }
        }
        config
    }

    /// Writes a safetensors file, tensor by tensor.
    fn write(
        &self,
        path: &Path,
        planned: &[Planned],
        progress: &mut dyn FnMut(u64, u64),
    ) -> io::Result<SynthReport> {
        let dtype = self.plan.dtype;
        let size = |p: &Planned| (p.shape.iter().product::<usize>() * dtype.block_bytes()) as u64;
        let total: u64 = planned.iter().map(size).sum();
        let mut header = json!({"__metadata__": {"format": "pt"}});
        let mut offset = 0;
        for tensor in planned {
            let end = offset + size(tensor);
            header[&tensor.name] = json!({
                "dtype": dtype.name().to_uppercase(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            offset = end;
        }
        let mut header = header.to_string();
        // The data begins at a multiple of 8.
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        sedge_formats::replace(path, |file| {
            let mut out = BufWriter::with_capacity(1 << 20, file);
            out.write_all(&(header.len() as u64).to_le_bytes())?;
            out.write_all(header.as_bytes())?;
            let mut done = 0;
            for tensor in planned {
                progress(done, total);
                self.put(tensor, &mut out)?;
                done += size(tensor);
            }
            out.flush()
        })?;
        Ok(SynthReport {
            parameters: total / dtype.block_bytes() as u64,
            bytes: total,
        })
    }

    fn put(&self, tensor: &Planned, out: &mut impl Write) -> io::Result<()> {
        let mut random = seeded(self.plan.seed, &tensor.name);
        let mut bytes = Vec::new();
        let mut encode = |values: &[f32]| {
            bytes.clear();
            quantize(self.plan.dtype, values, &mut bytes).map_err(io::Error::other)?;
            out.write_all(&bytes)
        };
        match &tensor.values {
            Values::Given(values) => encode(values),
            Values::Norms(module) => encode(&self.magnitudes(module, &mut random)),
            &Values::Normal { mean, deviation } => {
                let mut left = tensor.shape.iter().product::<usize>();
                while left > 0 {
                    let some = left.min(1 << 14);
                    let values: Vec<f32> = (0..some)
                        .map(|_| mean + deviation * random.normal())
                        .collect();
                    encode(&values)?;
                    left -= some;
                }
                Ok(())
            }
        }
    }
}

fn tensor(module: &Module, field: &str) -> String {
    format!("base_model.model.{}.{field}", module.name)
}

fn normal(name: &str, shape: &[usize], deviation: f32) -> Planned {
    Planned {
        name: name.into(),
        shape: shape.to_vec(),
        values: Values::Normal {
            mean: 0.0,
            deviation,
        },
    }
}

/// Root of the mean square of four rows.
fn size(weight: &Weight) -> f32 {
    let (rows, mut values) = (weight.rows(), vec![0.0; weight.cols()]);
    let mut square = 0.0;
    for part in 0..4 {
        weight.row(part * rows / 4, &mut values);
        square += values.iter().map(|v| v * v).sum::<f32>();
    }
    (square / (4 * values.len()) as f32).sqrt().max(1e-4)
}

/// The two factors of a size that are nearest each other, the smaller one first.
fn split(size: usize) -> (usize, usize) {
    let root = (1..=size).take_while(|d| d * d <= size);
    let small = root.filter(|d| size.is_multiple_of(*d)).last().unwrap_or(1);
    (small, size / small)
}
