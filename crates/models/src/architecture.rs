//! The architectures that are known, and their names in the two kinds of checkpoint.

use sedge_kernels::RopeStyle;

/// A family of language models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the models' own
pub enum Architecture {
    Llama,
    Mistral,
    Mixtral,
    Qwen2,
    Qwen2Moe,
    Qwen3,
    Qwen3Moe,
    Gemma2,
    Gemma3,
    Phi3,
    SmolLm3,
    Olmoe,
    DeepseekV2,
    Bert,
}

impl Architecture {
    /// Every architecture.
    pub const ALL: [Architecture; 14] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Mixtral,
        Architecture::Qwen2,
        Architecture::Qwen2Moe,
        Architecture::Qwen3,
        Architecture::Qwen3Moe,
        Architecture::Gemma2,
        Architecture::Gemma3,
        Architecture::Phi3,
        Architecture::SmolLm3,
        Architecture::Olmoe,
        Architecture::DeepseekV2,
        Architecture::Bert,
    ];

    /// `(model_type in config.json, general.architecture in GGUF)`.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Architecture::Llama => ("llama", "llama"),
            // GGUF has one name for the llama family; experts tell mixtral from it.
            Architecture::Mistral => ("mistral", "llama"),
            Architecture::Mixtral => ("mixtral", "llama"),
            Architecture::Qwen2 => ("qwen2", "qwen2"),
            Architecture::Qwen2Moe => ("qwen2_moe", "qwen2moe"),
            Architecture::Qwen3 => ("qwen3", "qwen3"),
            Architecture::Qwen3Moe => ("qwen3_moe", "qwen3moe"),
            Architecture::Gemma2 => ("gemma2", "gemma2"),
            Architecture::Gemma3 => ("gemma3_text", "gemma3"),
            Architecture::Phi3 => ("phi3", "phi3"),
            Architecture::SmolLm3 => ("smollm3", "smollm3"),
            Architecture::Olmoe => ("olmoe", "olmoe"),
            Architecture::DeepseekV2 => ("deepseek_v2", "deepseek2"),
            Architecture::Bert => ("bert", "bert"),
        }
    }

    /// Name as in a Hugging Face `config.json`; also what Sedge prints.
    pub const fn name(self) -> &'static str {
        self.names().0
    }

    /// Name as in a GGUF file.
    pub const fn gguf_name(self) -> &'static str {
        self.names().1
    }

    /// The architecture that a `config.json` names.
    pub fn from_model_type(name: &str) -> Option<Architecture> {
        Architecture::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The architecture that a GGUF file names; `experts` tells mixtral from llama.
    pub fn from_gguf(name: &str, experts: bool) -> Option<Architecture> {
        match (name, experts) {
            ("llama", true) => Some(Architecture::Mixtral),
            _ => Architecture::ALL
                .into_iter()
                .find(|a| a.gguf_name() == name),
        }
    }

    /// How GGUF files of this architecture pair the rotated values: the llama family's query and
    /// key rows are permuted when they are written.
    pub const fn gguf_rope_style(self) -> RopeStyle {
        match self {
            Architecture::Llama
            | Architecture::Mistral
            | Architecture::Mixtral
            | Architecture::DeepseekV2 => RopeStyle::Pairs,
            // SmolLM3's files are permuted like llama's.
            Architecture::SmolLm3 => RopeStyle::Pairs,
            _ => RopeStyle::Halves,
        }
    }

    /// How Hugging Face checkpoints of this architecture pair the rotated values.
    pub const fn hf_rope_style(self) -> RopeStyle {
        match self {
            Architecture::DeepseekV2 => RopeStyle::Pairs,
            _ => RopeStyle::Halves,
        }
    }

    /// All names, for an error.
    pub fn list() -> String {
        Architecture::ALL.map(Architecture::name).join(", ")
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
