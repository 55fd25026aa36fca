//! An attribution graph, put together.

use super::Collector;
use crate::{
    Array, Error, Result,
    v1::{
        AttributionEdges, AttributionNode, Work, WorkState, watch_attribution_graph_response::Event,
    },
};

/// An attribution graph.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// In the order in which they are computed: an edge leads from one to a later one.
    pub nodes: Vec<AttributionNode>,
    /// Of each edge, the index of the node that it comes from.
    pub sources: Vec<u32>,
    /// Of each edge, the index of the node that it goes to.
    pub targets: Vec<u32>,
    /// Of each edge, what the source adds to the target, of either sign, in the units of
    /// [`AttributionEdges`].
    pub weights: Vec<f32>,
}

#[derive(Default)]
pub(crate) struct GraphCollector {
    graph: Graph,
    /// As it was last told.
    work: Work,
    is_finished: bool,
}

impl GraphCollector {
    fn add_edges(&mut self, edges: AttributionEdges) -> Result<()> {
        let AttributionEdges { sources, targets, weights } = edges;
        let weights = Array::try_from(&weights.unwrap_or_default())?;
        if weights.shape() != [sources.len()] || targets.len() != sources.len() {
            return Err(Error::bad_response(format!(
                "the server sent {} sources, {} targets and weights in the shape {:?} of edges",
                sources.len(),
                targets.len(),
                weights.shape()
            )));
        }
        let count = self.graph.nodes.len();
        let mut edges = sources.iter().zip(&targets);
        if let Some((source, target)) =
            edges.find(|(source, target)| source >= target || **target as usize >= count)
        {
            return Err(Error::bad_response(format!(
                "the server sent an edge from node {source} to node {target} of {count}"
            )));
        }
        self.graph.sources.extend(sources);
        self.graph.targets.extend(targets);
        self.graph.weights.extend(weights.data());
        Ok(())
    }
}

impl Collector for GraphCollector {
    type Event = Event;
    type Collected = Graph;

    fn add(&mut self, event: Event) -> Result<()> {
        if self.is_finished {
            return Err(Error::bad_response("the server went on after it had finished"));
        }
        match event {
            Event::Progress(work) => self.work = work,
            Event::Nodes(_) if !self.graph.sources.is_empty() => {
                return Err(Error::bad_response("the server sent nodes after edges"));
            }
            Event::Nodes(nodes) => self.graph.nodes.extend(nodes.nodes),
            Event::Edges(edges) => self.add_edges(edges)?,
            Event::Finished(_) => self.is_finished = true,
        }
        Ok(())
    }

    fn finish(self) -> Result<Graph> {
        if !self.is_finished {
            return Err(Error::cut_short());
        }
        if self.work.state() == WorkState::Succeeded {
            return Ok(self.graph);
        }
        Err(Error::of_work(Some(&self.work)))
    }
}
