//! Pieces of prompts and answers in turn, never in one step.

use super::{Compose, Draft, Prompts, State};

pub(super) struct Alternate;

impl Compose for Alternate {
    fn compose(&self, state: &State, draft: &mut Draft<'_>) {
        draft.make_room();
        if state.prompts_last {
            draft.answers();
        }
        if draft.is_empty() {
            draft.prompts(Prompts::Pieces);
        }
        if draft.is_empty() {
            draft.answers();
        }
    }
}
