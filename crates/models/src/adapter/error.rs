//! What can be wrong with an adapter. Each error names the tensor or the field that it is about.

use sedge_formats::safetensors::SafetensorsError;

use super::method;

/// Why a checkpoint is not an adapter of a model.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Encoders have none.
    #[error("adapters change models that generate text; this model is an encoder")]
    Encoder,
    /// A folder that holds no adapter.
    #[error(
        "{folder} is not an adapter: expected a folder with adapter_config.json and adapter_model.safetensors"
    )]
    NotAnAdapter {
        /// Folder.
        folder: String,
    },
    /// The tensors' file is malformed.
    #[error("{path}: {source}")]
    Safetensors {
        /// File.
        path: String,
        /// What is wrong in it.
        source: SafetensorsError,
    },
    /// The configuration is not a JSON object.
    #[error("adapter_config.json is not a JSON object: {reason}")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// The configuration is larger than any real one.
    #[error("adapter_config.json has {bytes} bytes; at most {limit} are read")]
    ConfigSize {
        /// Its bytes.
        bytes: u64,
        /// Most that are read.
        limit: u64,
    },
    /// A field is missing.
    #[error("adapter_config.json: {field} is missing")]
    Field {
        /// Field.
        field: String,
    },
    /// A field has a value that cannot be used.
    #[error("adapter_config.json: {field} is {found}; it must be {expected}")]
    Value {
        /// Field.
        field: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A method of tuning that is not known.
    #[error(
        "adapter_config.json: peft_type {found:?} is not known; known are {}",
        method::list()
    )]
    Method {
        /// What the checkpoint says.
        found: String,
    },
    /// A variant of a method that changes what is computed, and that Sedge does not compute.
    #[error("adapter_config.json: {field} is {found}, which is not supported: {reason}")]
    Variant {
        /// Field.
        field: String,
        /// Its value.
        found: String,
        /// What it would mean.
        reason: String,
    },
    /// A type that adapters do not have.
    #[error("tensor {tensor:?} is of type {dtype}; adapters are read in f32, f16 and bf16")]
    Dtype {
        /// Tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// Bytes that do not fit the shape.
    #[error("tensor {tensor:?} of type {dtype} and shape {shape:?} cannot have {found} bytes")]
    Size {
        /// Tensor.
        tensor: String,
        /// Its type.
        dtype: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its bytes.
        found: usize,
    },
    /// Infinite values, or none at all.
    #[error("tensor {tensor:?} holds values that are infinite or not numbers")]
    NotFinite {
        /// Tensor.
        tensor: String,
    },
    /// Values that become infinite, or no numbers, when they are put together.
    #[error("{what} of {module:?} are infinite or not numbers")]
    Overflow {
        /// Which values.
        what: &'static str,
        /// Module.
        module: String,
    },
    /// The adapter's shapes are not those of the model.
    #[error(
        "tensor {tensor:?} has the shape {found:?}; on this model it must have {expected:?}: the adapter is for another base{}",
        named(base)
    )]
    Base {
        /// Tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the model needs.
        expected: Vec<usize>,
        /// The base that the adapter names.
        base: Option<String>,
    },
    /// A layer that the model does not have.
    #[error(
        "tensor {tensor:?} is of layer {layer} and the model has {layers}: the adapter is for another base{}",
        named(base)
    )]
    Layer {
        /// Tensor.
        tensor: String,
        /// Its layer.
        layer: usize,
        /// The model's layers.
        layers: usize,
        /// The base that the adapter names.
        base: Option<String>,
    },
    /// The tensor has another rank than the configuration says.
    #[error("tensor {tensor:?} is of rank {found}; adapter_config.json makes it {stated}")]
    Rank {
        /// Tensor.
        tensor: String,
        /// Its rank.
        found: usize,
        /// The configuration's.
        stated: usize,
    },
    /// A tensor has another shape than its method gives it.
    #[error("tensor {tensor:?} has the shape {found:?}; it must have {expected}")]
    Shape {
        /// Tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// What would be right.
        expected: String,
    },
    /// A module that the model does not have.
    #[error(
        "tensor {tensor:?} is of module {module:?}, which {architecture} does not have{}",
        named(base)
    )]
    Module {
        /// Tensor.
        tensor: String,
        /// Module.
        module: String,
        /// The model's architecture.
        architecture: crate::Architecture,
        /// The base that the adapter names.
        base: Option<String>,
    },
    /// A module that the model has and that adapters cannot change.
    #[error("tensor {tensor:?} is of module {module:?}: {reason}")]
    Part {
        /// Tensor.
        tensor: String,
        /// Module.
        module: String,
        /// Why not.
        reason: &'static str,
    },
    /// One of the tensors that belong together is missing.
    #[error("module {module:?} has {found} and no {missing}")]
    Incomplete {
        /// Module.
        module: String,
        /// A tensor that is there.
        found: String,
        /// The one that is missing.
        missing: String,
    },
    /// A tensor that the method does not use: computing without it would be wrong.
    #[error(
        "tensor {tensor:?} is not one that {method} uses; the checkpoint is of a variant that is not known"
    )]
    Unused {
        /// Tensor.
        tensor: String,
        /// Method.
        method: &'static str,
    },
    /// A whole matrix of the model that was trained along.
    #[error(
        "tensor {tensor:?} replaces a matrix of the model with other values, which is not supported: only norms and biases can be replaced"
    )]
    Whole {
        /// Tensor.
        tensor: String,
    },
    /// More memory than an adapter may take.
    #[error(
        "{module:?} takes the adapter past {limit} bytes once it is expanded; no adapter may take more"
    )]
    TooLarge {
        /// Module.
        module: String,
        /// Most bytes.
        limit: usize,
    },
    /// The checkpoint changes nothing.
    #[error("the checkpoint holds no tensor that {method} uses")]
    Empty {
        /// Method.
        method: &'static str,
    },
}

fn named(base: &Option<String>) -> String {
    match base {
        Some(base) => format!(" (it names {base:?})"),
        None => String::new(),
    }
}
