//! A model to messages.

use bytes::Bytes;
use prost::Message;

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, kind,
};
use super::{Attribute, Dim, Graph, Model, Node, Tensor, ValueInfo};

/// The bytes of a file that holds a model; reading them gives the same model. Tensors are stored
/// within. Other programs read no file of more than 2 GiB, a limit of theirs.
///
/// # Panics
/// When a tensor has not as many values as its shape takes.
pub fn write(model: &Model) -> Vec<u8> {
    let standard = ("", model.opset);
    let others = model
        .domains
        .iter()
        .map(|(domain, v)| (domain.as_str(), *v));
    let sets = std::iter::once(standard).chain(others);
    let metadata = model.metadata.iter();
    let proto = ModelProto {
        ir_version: model.ir_version,
        producer_name: model.producer.clone(),
        graph: Some(graph(&model.graph)),
        opset_import: sets
            .map(|(domain, version)| OperatorSetIdProto {
                domain: domain.to_owned(),
                version,
            })
            .collect(),
        metadata_props: metadata
            .map(|(key, value)| StringStringEntryProto {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        functions: Vec::new(),
    };
    proto.encode_to_vec()
}

fn graph(graph: &Graph) -> GraphProto {
    GraphProto {
        node: graph.nodes.iter().map(|n| encode(node(n))).collect(),
        name: graph.name.clone(),
        initializer: graph
            .initializers
            .iter()
            .map(|t| encode(tensor(t)))
            .collect(),
        input: graph.inputs.iter().map(|v| encode(value(v))).collect(),
        output: graph.outputs.iter().map(|v| encode(value(v))).collect(),
        sparse_initializer: Vec::new(),
    }
}

fn node(node: &Node) -> NodeProto {
    let attributes = node.attributes.iter();
    NodeProto {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: node.name.clone(),
        op_type: node.op.clone(),
        attribute: attributes
            .map(|(name, value)| encode(attribute(name, value)))
            .collect(),
        domain: node.domain.clone(),
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    };
    proto.r#type = match value {
        Attribute::Float(value) => {
            proto.f = Some(*value);
            kind::FLOAT
        }
        Attribute::Int(value) => {
            proto.i = Some(*value);
            kind::INT
        }
        Attribute::String(value) => {
            proto.s = Some(value.clone().into_bytes());
            kind::STRING
        }
        Attribute::Tensor(value) => {
            proto.t = Some(tensor(value));
            kind::TENSOR
        }
        Attribute::Graph(message) => {
            proto.g = Some(message.clone());
            kind::GRAPH
        }
        Attribute::Floats(values) => {
            proto.floats = values.clone();
            kind::FLOATS
        }
        Attribute::Ints(values) => {
            proto.ints = values.clone();
            kind::INTS
        }
        Attribute::Strings(values) => {
            proto.strings = values.iter().map(|v| v.clone().into_bytes()).collect();
            kind::STRINGS
        }
    };
    proto
}

fn tensor(tensor: &Tensor) -> TensorProto {
    let element = tensor.data.element();
    let raw = tensor.data.to_raw();
    let count: usize = tensor.shape.iter().product();
    assert_eq!(raw.len(), count * element.bytes(), "{:?}", tensor.name);
    TensorProto {
        dims: tensor.shape.iter().map(|d| *d as i64).collect(),
        data_type: element as i32,
        name: tensor.name.clone(),
        raw_data: raw.into(),
        ..TensorProto::default()
    }
}

fn value(value: &ValueInfo) -> ValueInfoProto {
    let shape = value.shape.as_ref().map(|dims| TensorShapeProto {
        dim: dims.iter().map(dimension).collect(),
    });
    let tensor_type = Some(TensorTypeProto {
        elem_type: value.element as i32,
        shape,
    });
    ValueInfoProto {
        name: value.name.clone(),
        r#type: Some(TypeProto { tensor_type }),
    }
}

fn dimension(dim: &Dim) -> DimensionProto {
    DimensionProto {
        dim_value: match dim {
            Dim::Fixed(size) => Some(*size as i64),
            _ => None,
        },
        dim_param: match dim {
            Dim::Symbol(name) => Some(name.clone()),
            _ => None,
        },
    }
}

fn encode(message: impl Message) -> Bytes {
    message.encode_to_vec().into()
}
