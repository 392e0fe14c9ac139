//! A network that is ready to look at pictures.

use std::sync::Arc;

use sedge_api::Wish;
use sedge_formats::image::Image;
use sedge_kernels::Team;
use sedge_vision::task::{Answer, Task, TaskError};
use sedge_vision::{Options, Program};

use super::network::Network;
use crate::failure::Failure;

/// A program with what its inputs and outputs mean.
pub(crate) struct Seer {
    task: Task,
    program: Program,
    team: Arc<Team>,
    /// The task's own, for wishes that leave them open.
    score: f32,
    most: usize,
}

impl Seer {
    /// Chooses kernels and lays out memory.
    pub(crate) fn new(network: Network, team: Arc<Team>) -> Result<Seer, Failure> {
        let Network { graph, task, .. } = network;
        let program = Program::new(&graph, Options::default(), &team).map_err(Failure::new)?;
        Ok(Seer {
            score: task.score,
            most: task.most,
            task,
            program,
            team,
        })
    }

    /// What is in a picture.
    pub(crate) fn see(&mut self, image: &Image, wish: &Wish) -> Result<Answer, TaskError> {
        self.task.score = wish.threshold.unwrap_or(self.score);
        self.task.most = wish.top.unwrap_or(self.most);
        let (input, frame) = self.task.input(image)?;
        self.program.run(&[&input], &self.team);
        let outputs = 0..self.program.outputs();
        let outputs: Vec<&[f32]> = outputs.map(|i| self.program.output(i).0).collect();
        self.task.answer(&outputs, &frame)
    }
}
