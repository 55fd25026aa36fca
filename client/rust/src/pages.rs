//! Lists, which come in pages.

use futures_util::{TryStreamExt, stream};
use tonic::Request;

use crate::{Error, Incoming, Result, v1};

/// A request for one page of a list.
pub(crate) trait PageRequest: Clone + Send + 'static {
    fn page_token(&mut self) -> &mut String;
}

macro_rules! page_requests {
    ($($request:ident),*) => {$(
        impl PageRequest for v1::$request {
            fn page_token(&mut self) -> &mut String {
                &mut self.page_token
            }
        }
    )*};
}

page_requests!(
    ListModelsRequest,
    ListKeptActivationsRequest,
    ListNlasRequest,
    ListSteeringVectorsRequest,
    ListDictionariesRequest,
    ListFeatureLabelsRequest,
    ListAttributionGraphsRequest,
    ListMonitorsRequest,
    ListAlertsRequest
);

/// The items of all pages, from that of the request on. The next page is asked for when all items
/// of one have been taken.
pub(crate) fn pages<R, T, Answer>(
    request: Request<R>,
    page: impl Fn(Request<R>) -> Answer + Send + 'static,
) -> Incoming<T>
where
    R: PageRequest,
    T: Send + 'static,
    Answer: Future<Output = Result<(Vec<T>, String)>> + Send + 'static,
{
    let (metadata, extensions, message) = request.into_parts();
    let ask =
        move |message: R| page(Request::from_parts(metadata.clone(), extensions.clone(), message));
    let pages = stream::try_unfold(Some(message), move |message| {
        let answer = message.clone().map(&ask);
        async move {
            let (Some(mut message), Some(answer)) = (message, answer) else { return Ok(None) };
            let (items, next) = answer.await?;
            let before = std::mem::replace(message.page_token(), next);
            if *message.page_token() == before && !before.is_empty() {
                return Err(Error::bad_response("the server sent a page whose next is itself"));
            }
            let is_last = message.page_token().is_empty();
            let items = stream::iter(items.into_iter().map(Ok));
            Ok(Some((items, (!is_last).then_some(message))))
        }
    });
    Incoming::new(pages.try_flatten())
}
