//! Prefill first: new prompts run whole and alone, and answers wait for them. The baseline that
//! stall-free steps are measured against; vLLM scheduled like this until its version 0.3.

use super::{Compose, Draft, Prompts, State};

pub(super) struct PrefillFirst;

impl Compose for PrefillFirst {
    fn compose(&self, _: &State, draft: &mut Draft<'_>) {
        draft.make_room();
        draft.prompts(Prompts::Whole);
        if draft.is_empty() {
            draft.answers();
        }
    }
}
