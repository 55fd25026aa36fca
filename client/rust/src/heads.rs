//! Attention heads, measured over a corpus.

use tonic::IntoRequest;

use crate::{
    Client, Incoming, MeasuredHeads, Result,
    collect::{HeadsCollector, collect},
    incoming::events,
    v1::{self, head_service_client::HeadServiceClient},
};

/// Attention heads.
impl Client {
    /// Measures every attention head of some layers over a corpus, in one call, and returns the
    /// whole.
    pub async fn measure_heads(
        &self,
        request: impl IntoRequest<v1::MeasureHeadsRequest>,
    ) -> Result<MeasuredHeads> {
        let request = request.into_request();
        let collector = HeadsCollector::from(request.get_ref());
        collect(self.measure_heads_stream(request).await?, |it| it.event, collector).await
    }

    /// What is measured of heads, as it arrives.
    pub async fn measure_heads_stream(
        &self,
        request: impl IntoRequest<v1::MeasureHeadsRequest>,
    ) -> Result<Incoming<v1::MeasureHeadsResponse>> {
        let mut stub = HeadServiceClient::new(self.transport());
        Ok(events(stub.measure_heads(request).await?.into_inner()))
    }
}
