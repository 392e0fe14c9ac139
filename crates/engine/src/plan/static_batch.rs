//! Request-level batching: a batch is taken together and runs until its last answer has ended.

use super::{Compose, Draft, Prompts, State};

pub(super) struct Static;

impl Compose for Static {
    fn compose(&self, _: &State, draft: &mut Draft<'_>) {
        // While a batch runs nobody joins it.
        draft.short = draft.runs > 0;
        draft.prompts(Prompts::Whole);
        if draft.is_empty() {
            draft.answers();
        }
    }
}
