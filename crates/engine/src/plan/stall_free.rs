//! Stall-free: no answer waits for a prompt.
//!
//! Follows Sarathi-Serve (Agrawal et al., OSDI 2024): answers take one token each; what is left
//! of the budget goes to prompts in pieces.

use super::{Compose, Draft, Prompts, State};

pub(super) struct StallFree;

impl Compose for StallFree {
    fn compose(&self, _: &State, draft: &mut Draft<'_>) {
        draft.make_room();
        draft.answers();
        draft.prompts(Prompts::Pieces);
    }
}
