//! ONNX models: the graph, its weights and what its nodes are told, as typed values.
//!
//! A file is one protobuf message of the ONNX specification (IR version 3 and later, any set of
//! operators). What an operator means is not known here: a graph that was read is a sound one, in
//! which each value has one writer, each value that is read is written, and nodes come after those
//! whose values they read. Memory is linear in the bytes of the file and of its external data.

mod external;
mod order;
mod proto;
mod read;
mod tensor;
mod write;

use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;

pub use read::read;
pub use tensor::{ElementType, Tensor, TensorData};
pub use write::write;

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: i64,
    /// Version of the standard operators (domain `""`, which files also call `ai.onnx`).
    pub opset: i64,
    /// The other sets of operators: domain and version.
    pub domains: Vec<(String, i64)>,
    /// Name of the program that made it.
    pub producer: String,
    /// Keys and values that its maker added.
    pub metadata: Vec<(String, String)>,
    /// What is computed.
    pub graph: Graph,
}

impl Model {
    /// Maps and reads a file. External data is looked for in the file's folder.
    ///
    /// # Errors
    /// When the file cannot be mapped, and as [`read()`].
    pub fn open(path: &Path) -> Result<Model, OnnxError> {
        let bytes = crate::map(path).map_err(|source| OnnxError::Io {
            path: path.display().to_string(),
            source,
        })?;
        read(bytes, path.parent())
    }
}

/// Values, and the nodes that compute them.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// Name.
    pub name: String,
    /// In an order in which they can be computed: the file's wherever that is one.
    pub nodes: Vec<Node>,
    /// Values that the file holds.
    pub initializers: Vec<Tensor>,
    /// Values that the caller gives. Old files list initializers among them; those are left out.
    pub inputs: Vec<ValueInfo>,
    /// Values that the caller gets.
    pub outputs: Vec<ValueInfo>,
}

/// One computation.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Name; often empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// The operator's domain; `""` is the standard one.
    pub domain: String,
    /// Values read, by the operator's order; `""` where an optional one is not given.
    pub inputs: Vec<String>,
    /// Values written, by the operator's order; `""` where an optional one is not wanted.
    pub outputs: Vec<String>,
    /// What the operator is told, by name.
    pub attributes: IndexMap<String, Attribute>,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// A number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    String(String),
    /// A tensor.
    Tensor(Tensor),
    /// Numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
    /// A graph that an operator of control flow (`If`, `Loop`, `Scan`) runs: its message as it
    /// stands in the file, unread. It may read values of the graph around it, which the checks
    /// and the order of nodes do not see.
    Graph(Bytes),
}

impl Node {
    /// How messages name it: by operator and name, or by operator and first value written.
    pub fn label(&self) -> String {
        let Node { op, name, .. } = self;
        match self.outputs.iter().find(|output| !output.is_empty()) {
            _ if !name.is_empty() => format!("{op} {name:?}"),
            Some(output) => format!("{op} of {output:?}"),
            None => format!("{op} without a name"),
        }
    }

    /// An integer attribute, or `None` if it is not given.
    ///
    /// # Errors
    /// When it is given and is of another kind; as all of these.
    pub fn int(&self, name: &str) -> Result<Option<i64>, OnnxError> {
        self.attribute(name, "an integer", |value| match value {
            Attribute::Int(value) => Some(*value),
            _ => None,
        })
    }

    /// A list of integers, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn ints(&self, name: &str) -> Result<Option<&[i64]>, OnnxError> {
        self.attribute(name, "a list of integers", |value| match value {
            Attribute::Ints(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A number, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn float(&self, name: &str) -> Result<Option<f32>, OnnxError> {
        self.attribute(name, "a number", |value| match value {
            Attribute::Float(value) => Some(*value),
            _ => None,
        })
    }

    /// A list of numbers, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn floats(&self, name: &str) -> Result<Option<&[f32]>, OnnxError> {
        self.attribute(name, "a list of numbers", |value| match value {
            Attribute::Floats(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A text, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn string(&self, name: &str) -> Result<Option<&str>, OnnxError> {
        self.attribute(name, "a text", |value| match value {
            Attribute::String(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// A list of texts, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn strings(&self, name: &str) -> Result<Option<&[String]>, OnnxError> {
        self.attribute(name, "a list of texts", |value| match value {
            Attribute::Strings(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A tensor, or `None`.
    ///
    /// # Errors
    /// As [`Node::int`].
    pub fn tensor(&self, name: &str) -> Result<Option<&Tensor>, OnnxError> {
        self.attribute(name, "a tensor", |value| match value {
            Attribute::Tensor(value) => Some(value),
            _ => None,
        })
    }

    fn attribute<'a, T>(
        &'a self,
        name: &str,
        wanted: &'static str,
        get: impl FnOnce(&'a Attribute) -> Option<T>,
    ) -> Result<Option<T>, OnnxError> {
        let Some(value) = self.attributes.get(name) else {
            return Ok(None);
        };
        match get(value) {
            Some(value) => Ok(Some(value)),
            None => Err(OnnxError::Kind {
                node: self.label(),
                attribute: name.to_owned(),
                wanted,
            }),
        }
    }
}

/// An input or an output of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Type of its elements.
    pub element: ElementType,
    /// Slowest dimension first; `None` where the file does not even say how many there are.
    pub shape: Option<Vec<Dim>>,
}

/// What is known of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Its size, which is not 0.
    Fixed(usize),
    /// A name, equal where dimensions are: `"batch"`.
    Symbol(String),
    /// Nothing. Files also say so with -1 or 0.
    Unknown,
}

/// Why a model could not be read, or an attribute is not what an operator needs.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// A file could not be opened or mapped.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Bytes are not the message that they should be.
    #[error("{place} is malformed: {source}")]
    Protobuf {
        /// Which part of the file.
        place: String,
        /// Cause.
        source: prost::DecodeError,
    },
    /// The file holds no graph.
    #[error("the file holds no graph: not an ONNX model")]
    NoGraph,
    /// The file does not say which version of the standard operators it uses.
    #[error("the file does not say which version of the standard operators it uses")]
    NoOpset,
    /// The file states two versions of one set of operators.
    #[error("the file states two versions of the operators of domain {domain:?}")]
    OpsetTwice {
        /// Domain.
        domain: String,
    },
    /// Something that Sedge does not read.
    #[error("{place} has {what}, which is not supported")]
    Unsupported {
        /// Which part of the file.
        place: String,
        /// What it has.
        what: String,
    },
    /// A thing without the name that others need.
    #[error("{place} has no name")]
    NoName {
        /// Which part of the file.
        place: String,
    },
    /// Dimensions that no tensor can have: negative, too many, or too large together.
    #[error("{place} cannot have shape {shape:?}")]
    Shape {
        /// Tensor or value.
        place: String,
        /// Slowest dimension first; the first few of too many.
        shape: Vec<i64>,
    },
    /// A tensor's data is more or less than its type and shape take.
    #[error(
        "{place} of type {element} and shape {shape:?} takes {expected} {unit} and has {found}"
    )]
    Size {
        /// Tensor.
        place: String,
        /// Type of its elements.
        element: ElementType,
        /// Slowest dimension first.
        shape: Vec<usize>,
        /// `bytes` or `values`, as they are stored.
        unit: &'static str,
        /// What type and shape take.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// A value outside the range of its tensor's type.
    #[error("value {index} of {place} does not fit its type, {element}")]
    Range {
        /// Tensor.
        place: String,
        /// Type of its elements.
        element: ElementType,
        /// Which value.
        index: usize,
    },
    /// A model that was given as bytes alone has a tensor in another file.
    #[error("{place} lies in another file, and the model was not read from a folder")]
    NoFolder {
        /// Tensor.
        place: String,
    },
    /// External data that names no file inside the model's folder, or no valid place in one.
    #[error("{place} lies in another file; its {key} is {value:?}, {expected}")]
    External {
        /// Tensor.
        place: String,
        /// `location`, `offset` or `length`.
        key: &'static str,
        /// What the file says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// External data that lies outside its file.
    #[error("{place} takes {len} bytes from byte {offset} of {path}, which has {file}")]
    ExternalEnd {
        /// Tensor.
        place: String,
        /// File.
        path: String,
        /// First byte.
        offset: u64,
        /// How many bytes.
        len: usize,
        /// The file's number of bytes.
        file: usize,
    },
    /// External tensors that together take more bytes than their file has.
    #[error("{place} and tensors before it take more bytes of {path} than it has: they overlap")]
    ExternalOverlap {
        /// Tensor.
        place: String,
        /// File.
        path: String,
    },
    /// A value that two writers have.
    #[error("value {value:?} is written twice, the second time by {writer}")]
    Twice {
        /// Value.
        value: String,
        /// Its second writer.
        writer: String,
    },
    /// A value that nobody writes.
    #[error("{reader} reads value {value:?}, which nothing writes")]
    Unwritten {
        /// Who reads it.
        reader: String,
        /// Value.
        value: String,
    },
    /// Nodes that read each other's values.
    #[error("{node} reads, through others, what it writes")]
    Cycle {
        /// A node of the cycle.
        node: String,
    },
    /// A node has two attributes of one name.
    #[error("{node} has attribute {attribute:?} twice")]
    AttributeTwice {
        /// Node.
        node: String,
        /// Attribute.
        attribute: String,
    },
    /// A text that is not UTF-8.
    #[error("attribute {attribute:?} of {node} is not UTF-8")]
    Text {
        /// Node.
        node: String,
        /// Attribute.
        attribute: String,
    },
    /// An attribute is not of the kind that its operator needs.
    #[error("attribute {attribute:?} of {node} is not {wanted}")]
    Kind {
        /// Node.
        node: String,
        /// Attribute.
        attribute: String,
        /// What it should be.
        wanted: &'static str,
    },
}
