//! Attribution graphs: what a prediction comes from.

use std::time::Duration;

use tonic::IntoRequest;

use crate::{
    Client, Error, Graph, Incoming, Result,
    client::identify,
    collect::{GraphCollector, collect},
    incoming::events,
    pages::pages,
    transport::Transport,
    v1::{self, WorkState, attribution_graph_service_client::AttributionGraphServiceClient},
};

/// How often [`Client::wait_for_attribution_graph`] looks whether a graph is made.
const POLL: Duration = Duration::from_secs(1);

/// Attribution graphs.
impl Client {
    fn graphs(&self) -> AttributionGraphServiceClient<Transport> {
        AttributionGraphServiceClient::new(self.transport())
    }

    /// Begins a graph of what the next token of a prompt comes from;
    /// [`wait_for_attribution_graph`](Self::wait_for_attribution_graph) waits for it. Its
    /// `request_id` is as that of [`create_steering_vector`](Self::create_steering_vector).
    pub async fn create_attribution_graph(
        &self,
        request: impl IntoRequest<v1::CreateAttributionGraphRequest>,
    ) -> Result<v1::CreateAttributionGraphResponse> {
        let mut request = request.into_request();
        identify(&mut request.get_mut().request_id);
        Ok(self.graphs().create_attribution_graph(request).await?.into_inner())
    }

    /// What a graph is of and how far it has come, without nodes and edges.
    pub async fn get_attribution_graph(
        &self,
        request: impl IntoRequest<v1::GetAttributionGraphRequest>,
    ) -> Result<v1::GetAttributionGraphResponse> {
        Ok(self.graphs().get_attribution_graph(request).await?.into_inner())
    }

    /// The graphs of a model, without nodes and edges, page by page.
    pub fn list_attribution_graphs(
        &self,
        request: impl IntoRequest<v1::ListAttributionGraphsRequest>,
    ) -> Incoming<v1::AttributionGraph> {
        let stub = self.graphs();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_attribution_graphs(request).await?.into_inner();
                Ok((page.attribution_graphs, page.next_page_token))
            }
        })
    }

    /// Deletes a graph, and ends the work on it.
    pub async fn delete_attribution_graph(
        &self,
        request: impl IntoRequest<v1::DeleteAttributionGraphRequest>,
    ) -> Result<v1::DeleteAttributionGraphResponse> {
        Ok(self.graphs().delete_attribution_graph(request).await?.into_inner())
    }

    /// A graph, once it is made; or why it has not been. It waits for as long as that takes, also
    /// over connections that are lost.
    pub async fn wait_for_attribution_graph(&self, name: impl Into<String>) -> Result<Graph> {
        let name = name.into();
        loop {
            let request = v1::GetAttributionGraphRequest { name: name.clone() };
            let graph = self.get_attribution_graph(request).await?.attribution_graph;
            let work = graph.unwrap_or_default().work.unwrap_or_default();
            match work.state() {
                WorkState::Waiting | WorkState::Running => tokio::time::sleep(POLL).await,
                WorkState::Failed => return Err(Error::of_work(Some(&work))),
                _ => break,
            }
        }
        self.watch_attribution_graph(v1::WatchAttributionGraphRequest { name }).await
    }

    /// A graph, once it is made; or why it has not been. Over one connection, and whole.
    pub async fn watch_attribution_graph(
        &self,
        request: impl IntoRequest<v1::WatchAttributionGraphRequest>,
    ) -> Result<Graph> {
        let events = self.watch_attribution_graph_stream(request).await?;
        collect(events, |it| it.event, GraphCollector::default()).await
    }

    /// How far a graph has come, and then its nodes and edges, as they arrive.
    pub async fn watch_attribution_graph_stream(
        &self,
        request: impl IntoRequest<v1::WatchAttributionGraphRequest>,
    ) -> Result<Incoming<v1::WatchAttributionGraphResponse>> {
        Ok(events(self.graphs().watch_attribution_graph(request).await?.into_inner()))
    }
}
