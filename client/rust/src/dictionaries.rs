//! Dictionaries that a server has: listed, uploaded, labelled.

use prost::Message;
use ring::digest::{Context, SHA256};
use tonic::{IntoRequest, Request};

use crate::{
    Client, Error, Incoming, Result,
    crc32c::crc32c,
    pages::pages,
    transport::Transport,
    v1::{self, dictionary_service_client::DictionaryServiceClient},
};

/// Dictionaries: sparse autoencoders and transcoders.
impl Client {
    fn dictionaries(&self) -> DictionaryServiceClient<Transport> {
        DictionaryServiceClient::new(self.transport())
    }

    /// The dictionaries that the server has, page by page.
    pub fn list_dictionaries(
        &self,
        request: impl IntoRequest<v1::ListDictionariesRequest>,
    ) -> Incoming<v1::Dictionary> {
        let stub = self.dictionaries();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_dictionaries(request).await?.into_inner();
                Ok((page.dictionaries, page.next_page_token))
            }
        })
    }

    /// One dictionary, without its matrices.
    pub async fn get_dictionary(
        &self,
        request: impl IntoRequest<v1::GetDictionaryRequest>,
    ) -> Result<v1::GetDictionaryResponse> {
        Ok(self.dictionaries().get_dictionary(request).await?.into_inner())
    }

    /// Stores a dictionary, chunk by chunk; `contents` are the bytes of each of its matrices.
    ///
    /// Without a `request_id` the upload has one that follows from what is uploaded. So the same
    /// call, made again after it was cut, goes on where it was, in another program too. A timeout
    /// holds for each of the calls that it takes.
    pub async fn upload_dictionary(
        &self,
        request: impl IntoRequest<v1::BeginUploadRequest>,
        contents: &[&[u8]],
    ) -> Result<v1::Dictionary> {
        let (metadata, extensions, mut message) = request.into_request().into_parts();
        if contents.len() != message.matrices.len() {
            return Err(Error::field_invalid(
                "matrices",
                format!(
                    "the bytes of {} matrices are given for {}; give those of each",
                    contents.len(),
                    message.matrices.len()
                ),
            ));
        }
        if message.request_id.is_empty() {
            message.request_id = upload_id(&message, contents);
        }
        let mut stub = self.dictionaries();
        let begin = Request::from_parts(metadata.clone(), extensions.clone(), message);
        let begun = stub.begin_upload(begin).await?.into_inner();
        check_begun(&begun, contents)?;
        for (index, content) in contents.iter().enumerate() {
            let mut offset = begun.received_bytes[index];
            while offset < content.len() as u64 {
                let request = chunk(&begun, index, offset, content);
                let request = Request::from_parts(metadata.clone(), extensions.clone(), request);
                let received = stub.upload_chunk(request).await?.into_inner().received_bytes;
                if received <= offset || received > content.len() as u64 {
                    return Err(Error::bad_response(format!(
                        "the server has {received} bytes of a matrix of {} after a chunk from \
                         {offset} on",
                        content.len()
                    )));
                }
                offset = received;
            }
        }
        let finish = v1::FinishUploadRequest { upload: begun.upload };
        let finish = Request::from_parts(metadata, extensions, finish);
        let stored = stub.finish_upload(finish).await?.into_inner().dictionary;
        stored.ok_or_else(|| Error::bad_response("the server stored a dictionary and tells none"))
    }

    /// Deletes a dictionary and its labels. Runs that use it keep it.
    pub async fn delete_dictionary(
        &self,
        request: impl IntoRequest<v1::DeleteDictionaryRequest>,
    ) -> Result<v1::DeleteDictionaryResponse> {
        Ok(self.dictionaries().delete_dictionary(request).await?.into_inner())
    }

    /// Says what features of a dictionary stand for.
    pub async fn set_feature_labels(
        &self,
        request: impl IntoRequest<v1::SetFeatureLabelsRequest>,
    ) -> Result<v1::SetFeatureLabelsResponse> {
        Ok(self.dictionaries().set_feature_labels(request).await?.into_inner())
    }

    /// What features of a dictionary stand for, by index, page by page.
    pub fn list_feature_labels(
        &self,
        request: impl IntoRequest<v1::ListFeatureLabelsRequest>,
    ) -> Incoming<v1::FeatureLabel> {
        let stub = self.dictionaries();
        pages(request.into_request(), move |request| {
            let mut stub = stub.clone();
            async move {
                let page = stub.list_feature_labels(request).await?.into_inner();
                Ok((page.labels, page.next_page_token))
            }
        })
    }
}

/// An id that follows from what is uploaded.
fn upload_id(request: &v1::BeginUploadRequest, contents: &[&[u8]]) -> String {
    let mut digest = Context::new(&SHA256);
    digest.update(&request.encode_to_vec());
    for content in contents {
        digest.update(content);
    }
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_begun(begun: &v1::BeginUploadResponse, contents: &[&[u8]]) -> Result<()> {
    let received = &begun.received_bytes;
    if received.len() != contents.len() || begun.max_chunk_bytes == 0 {
        return Err(Error::bad_response(format!(
            "the server began an upload of {} matrices, not of {}, in chunks of {} bytes",
            received.len(),
            contents.len(),
            begun.max_chunk_bytes
        )));
    }
    let sizes = contents.iter().map(|content| content.len() as u64);
    match received.iter().zip(sizes).find(|(received, size)| *received > size) {
        None => Ok(()),
        Some((received, size)) => Err(Error::bad_response(format!(
            "the server has {received} bytes of a matrix of {size}"
        ))),
    }
}

/// The chunk of a matrix that begins at this byte.
fn chunk(
    begun: &v1::BeginUploadResponse,
    index: usize,
    offset: u64,
    content: &[u8],
) -> v1::UploadChunkRequest {
    let rest = &content[offset as usize..];
    let chunk = &rest[..rest.len().min(begun.max_chunk_bytes as usize)];
    v1::UploadChunkRequest {
        upload: begun.upload.clone(),
        matrix_index: Some(index as u32),
        offset: Some(offset),
        content: chunk.to_vec(),
        crc32c: Some(crc32c(chunk)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upload_has_the_id_of_what_is_uploaded() {
        let request = v1::BeginUploadRequest { dictionary_id: "mine".into(), ..Default::default() };
        let other = v1::BeginUploadRequest { dictionary_id: "yours".into(), ..Default::default() };
        let id = upload_id(&request, &[&[1, 2], &[3]]);
        assert_eq!(id, upload_id(&request, &[&[1, 2], &[3]]));
        assert_ne!(id, upload_id(&request, &[&[1, 2], &[4]]));
        assert_ne!(id, upload_id(&other, &[&[1, 2], &[3]]));
        assert_eq!(id.len(), 64);
    }
}
