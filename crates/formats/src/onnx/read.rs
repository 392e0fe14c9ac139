//! Messages to a model.

use std::collections::HashSet;
use std::path::Path;

use bytes::Bytes;
use indexmap::IndexMap;
use prost::Message;

use super::external::External;
use super::order::order;
use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    kind,
};
use super::tensor::{self, ElementType, MAX_RANK, Tensor};
use super::{Attribute, Dim, Graph, Model, Node, OnnxError, ValueInfo};

/// Reads a model from a file's bytes. Tensors in other files are read from `folder`.
///
/// # Errors
/// When a message is malformed, the graph is missing or not sound, a tensor has not the data that
/// its type and shape take, external data lies outside `folder`, or the file has what Sedge does
/// not read (local functions, sparse tensors, texts as elements, values that are no tensors).
pub fn read(bytes: Bytes, folder: Option<&Path>) -> Result<Model, OnnxError> {
    let proto: ModelProto = decode(bytes, || "the model".to_owned())?;
    if !proto.functions.is_empty() {
        return Err(unsupported("the model".to_owned(), "local functions"));
    }
    let graph = proto.graph.ok_or(OnnxError::NoGraph)?;
    let (mut opset, mut domains) = (None, IndexMap::new());
    for set in proto.opset_import {
        let domain = standard(set.domain);
        let before = if domain.is_empty() {
            opset.replace(set.version)
        } else {
            domains.insert(domain.clone(), set.version)
        };
        if before.is_some() {
            return Err(OnnxError::OpsetTwice { domain });
        }
    }
    let metadata = proto.metadata_props.into_iter();
    Ok(Model {
        ir_version: proto.ir_version,
        opset: opset.ok_or(OnnxError::NoOpset)?,
        domains: domains.into_iter().collect(),
        producer: proto.producer_name,
        metadata: metadata.map(|entry| (entry.key, entry.value)).collect(),
        graph: read_graph(graph, &mut External::new(folder))?,
    })
}

fn read_graph(proto: GraphProto, external: &mut External) -> Result<Graph, OnnxError> {
    if !proto.sparse_initializer.is_empty() {
        return Err(unsupported("the graph".to_owned(), "sparse initializers"));
    }
    let mut initializers: Vec<Tensor> = Vec::new();
    for (index, bytes) in proto.initializer.into_iter().enumerate() {
        let place = || format!("initializer {index}");
        let tensor: TensorProto = decode(bytes, place)?;
        if tensor.name.is_empty() {
            return Err(OnnxError::NoName { place: place() });
        }
        initializers.push(tensor::read(tensor, place, external)?);
    }
    let names: HashSet<&str> = initializers.iter().map(|t| t.name.as_str()).collect();
    let inputs = values("input", proto.input, &names)?;
    let outputs = values("output", proto.output, &HashSet::new())?;
    let nodes = proto.node.into_iter().enumerate();
    let nodes = nodes.map(|(index, bytes)| read_node(index, bytes, external));
    let mut graph = Graph {
        name: proto.name,
        nodes: nodes.collect::<Result<_, _>>()?,
        initializers,
        inputs,
        outputs,
    };
    order(&mut graph)?;
    Ok(graph)
}

/// Inputs or outputs but those of the names in `without`.
fn values(
    what: &str,
    list: Vec<Bytes>,
    without: &HashSet<&str>,
) -> Result<Vec<ValueInfo>, OnnxError> {
    let mut values = Vec::new();
    for (index, bytes) in list.into_iter().enumerate() {
        let place = || format!("{what} {index}");
        let value: ValueInfoProto = decode(bytes, place)?;
        if value.name.is_empty() {
            return Err(OnnxError::NoName { place: place() });
        }
        if !without.contains(value.name.as_str()) {
            let place = format!("{what} {:?}", value.name);
            values.push(read_value(value, place)?);
        }
    }
    Ok(values)
}

fn read_value(value: ValueInfoProto, place: String) -> Result<ValueInfo, OnnxError> {
    let Some(tensor) = value.r#type.and_then(|of| of.tensor_type) else {
        return Err(unsupported(place, "a type that is no tensor's"));
    };
    let element = ElementType::read(tensor.elem_type, &place)?;
    let shape = match tensor.shape {
        None => None,
        Some(shape) => {
            let dims = shape.dim;
            let valid = dims.iter().all(|dim| dim.dim_value.unwrap_or(0) >= -1);
            if !valid || dims.len() > MAX_RANK {
                let dims = dims.iter().take(MAX_RANK);
                let shape = dims.map(|dim| dim.dim_value.unwrap_or(-1)).collect();
                return Err(OnnxError::Shape { place, shape });
            }
            Some(dims.into_iter().map(read_dim).collect())
        }
    };
    Ok(ValueInfo {
        name: value.name,
        element,
        shape,
    })
}

fn read_dim(dim: DimensionProto) -> Dim {
    match (dim.dim_value.map(usize::try_from), dim.dim_param) {
        (Some(Ok(size)), _) if size > 0 => Dim::Fixed(size),
        (None, Some(name)) if !name.is_empty() => Dim::Symbol(name),
        _ => Dim::Unknown,
    }
}

fn read_node(index: usize, bytes: Bytes, external: &mut External) -> Result<Node, OnnxError> {
    let proto: NodeProto = decode(bytes, || format!("node {index}"))?;
    if proto.op_type.is_empty() {
        return Err(OnnxError::NoName {
            place: format!("the operator of node {index} ({:?})", proto.name),
        });
    }
    let mut node = Node {
        name: proto.name,
        op: proto.op_type,
        domain: standard(proto.domain),
        inputs: proto.input,
        outputs: proto.output,
        attributes: IndexMap::new(),
    };
    let label = node.label();
    for bytes in proto.attribute {
        let attribute: AttributeProto = decode(bytes, || format!("an attribute of {label}"))?;
        if attribute.name.is_empty() {
            return Err(OnnxError::NoName {
                place: format!("an attribute of {label}"),
            });
        }
        let name = attribute.name.clone();
        let value = read_attribute(attribute, &label, external)?;
        if node.attributes.contains_key(&name) {
            return Err(OnnxError::AttributeTwice {
                node: label,
                attribute: name,
            });
        }
        node.attributes.insert(name, value);
    }
    Ok(node)
}

fn read_attribute(
    proto: AttributeProto,
    node: &str,
    external: &mut External,
) -> Result<Attribute, OnnxError> {
    let name = proto.name;
    let place = || format!("attribute {name:?} of {node}");
    if !proto.ref_attr_name.is_empty() {
        return Err(unsupported(place(), "the value of a function's attribute"));
    }
    let text = |bytes| {
        String::from_utf8(bytes).map_err(|_| OnnxError::Text {
            node: node.to_owned(),
            attribute: name.clone(),
        })
    };
    Ok(match proto.r#type {
        kind::FLOAT => Attribute::Float(proto.f.unwrap_or_default()),
        kind::INT => Attribute::Int(proto.i.unwrap_or_default()),
        kind::STRING => Attribute::String(text(proto.s.unwrap_or_default())?),
        kind::TENSOR => {
            let tensor = proto.t.unwrap_or_default();
            Attribute::Tensor(tensor::read(tensor, place, external)?)
        }
        kind::GRAPH => Attribute::Graph(proto.g.unwrap_or_default()),
        kind::FLOATS => Attribute::Floats(proto.floats),
        kind::INTS => Attribute::Ints(proto.ints),
        kind::STRINGS => {
            let texts = proto.strings.into_iter().map(text);
            Attribute::Strings(texts.collect::<Result<_, _>>()?)
        }
        other => return Err(unsupported(place(), &format!("a value of type {other}"))),
    })
}

/// The standard domain has two names.
fn standard(domain: String) -> String {
    if domain == "ai.onnx" {
        String::new()
    } else {
        domain
    }
}

fn decode<M: Message + Default>(
    bytes: Bytes,
    place: impl FnOnce() -> String,
) -> Result<M, OnnxError> {
    M::decode(bytes).map_err(|source| OnnxError::Protobuf {
        place: place(),
        source,
    })
}

fn unsupported(place: String, what: &str) -> OnnxError {
    OnnxError::Unsupported {
        place,
        what: what.to_owned(),
    }
}
