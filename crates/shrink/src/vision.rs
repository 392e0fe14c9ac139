//! Networks that see, made smaller: weights that are left out ([`prune`](prune())), and values
//! and weights of 8 bits ([`quantise`](quantise())). Both look at what the network computes of
//! some pictures, and what they cost is measured by [`compare`](compare()).

mod channels;
mod compare;
mod correct;
mod prune;
mod quantise;
mod rearrange;
mod schedule;
mod watch;

use sedge_vision::{Graph, Op, ProgramError, Weights};

pub use compare::{Comparison, compare};
pub use prune::{Layer, Pruned, Pruning, PruningError, Scope, prune};
pub use quantise::{Quantised, Ranges, quantise};
pub use schedule::cubic;
pub use watch::{Pictures, noise};

/// Why a network cannot be made smaller.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// No layer is of the kind that is made sparse.
    #[error("the network has no pointwise convolutions of several pixels to make sparse")]
    NoLayers,
    /// Nothing is convolved.
    #[error("the network has no convolutions to round")]
    NoConvolutions,
    /// Integers were made of it before.
    #[error("node {node:?} is of 8 bits already")]
    Quantised {
        /// The first such node.
        node: String,
    },
    /// Something that is no number.
    #[error("{value:?} holds what is no number")]
    NotFinite {
        /// Value of the graph, or node whose weights they are.
        value: String,
    },
    /// The network does not run.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Refuses networks of integers, and weights that are no numbers.
fn whole(graph: &Graph) -> Result<(), VisionError> {
    for node in graph.nodes() {
        let weights = match &node.op {
            Op::Conv(conv) => Some(&conv.weights),
            Op::Linear { weights, .. } => Some(weights),
            _ => None,
        };
        let name = || node.name.clone();
        match weights {
            Some(Weights::Int8 { .. }) => return Err(VisionError::Quantised { node: name() }),
            Some(Weights::Float(x)) if !x.iter().all(|x| x.is_finite()) => {
                return Err(VisionError::NotFinite { value: name() });
            }
            _ => {}
        }
        if graph.info(node.output).quant.is_some() {
            return Err(VisionError::Quantised { node: name() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
