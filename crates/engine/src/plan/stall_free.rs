//! Stall-free: no answer waits for a prompt.
//!
//! Follows Sarathi-Serve (Agrawal et al., OSDI 2024): answers take one token each; what is left
//! of the budget goes to prompts in pieces. Where tenants share, what is beyond a tenant's share
//! comes after all that is not: a flood of answers does not take the budget from others' prompts.

use super::{Compose, Draft, Prompts, State, Task};

pub(super) struct StallFree;

impl Compose for StallFree {
    fn compose(&self, _: &State, draft: &mut Draft<'_>) {
        draft.make_room();
        for beyond in [false, true] {
            let whose = |task: &Task| task.level.beyond_share == beyond;
            draft.answers_of(&whose);
            draft.prompts_of(&whose, Prompts::Pieces);
        }
    }
}
