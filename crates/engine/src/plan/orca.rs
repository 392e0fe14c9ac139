//! Orca's iteration-level batching (Yu et al., OSDI 2022): prompts join the running batch whole,
//! so a step lasts as long as its longest prompt.

use super::{Compose, Draft, Prompts, State};

pub(super) struct Orca;

impl Compose for Orca {
    fn compose(&self, _: &State, draft: &mut Draft<'_>) {
        draft.make_room();
        draft.answers();
        draft.prompts(Prompts::Whole);
    }
}
