import { clone, toBinary } from "@bufbuild/protobuf";
import type { CallOptions, Client as Stub } from "@connectrpc/connect";

import { crc32c } from "./crc32c.js";
import { badResponse, invalid } from "./errors.js";
import {
  BeginUploadRequestSchema,
  type BeginUploadRequest,
  type BeginUploadResponse,
  type Dictionary,
  type DictionaryService,
} from "./gen/actserve/v1/dictionary_service_pb.js";
import { hexadecimal, randomId } from "./ids.js";

/** Sends a dictionary: begins the upload, sends what the server lacks of each matrix, and ends it. */
export async function uploaded(
  dictionaries: Stub<typeof DictionaryService>,
  request: BeginUploadRequest,
  contents: readonly Uint8Array[],
  options?: CallOptions,
): Promise<Dictionary> {
  if (contents.length !== request.matrices.length) {
    throw invalid(
      `the bytes of ${contents.length} matrices are given for ${request.matrices.length}; give ` +
        "those of each",
      "FIELD_INVALID",
      "matrices",
    );
  }
  const message = clone(BeginUploadRequestSchema, request);
  message.requestId ||= await uploadId(message, contents);
  const begun = await dictionaries.beginUpload(message, options);
  checkBegun(begun, contents);
  for (const [matrixIndex, content] of contents.entries()) {
    let offset = Number(begun.receivedBytes[matrixIndex]);
    while (offset < content.length) {
      const chunk = content.subarray(offset, offset + begun.maxChunkBytes);
      const { receivedBytes } = await dictionaries.uploadChunk(
        {
          upload: begun.upload,
          matrixIndex,
          offset: BigInt(offset),
          content: chunk,
          crc32c: crc32c(chunk),
        },
        options,
      );
      if (receivedBytes <= offset || receivedBytes > content.length) {
        throw badResponse(
          `the server has ${receivedBytes} bytes of a matrix of ${content.length} after a chunk ` +
            `from ${offset} on`,
        );
      }
      offset = Number(receivedBytes);
    }
  }
  const { dictionary } = await dictionaries.finishUpload({ upload: begun.upload }, options);
  if (!dictionary) throw badResponse("the server stored a dictionary and does not tell it");
  return dictionary;
}

function checkBegun(
  { receivedBytes, maxChunkBytes }: BeginUploadResponse,
  contents: readonly Uint8Array[],
): void {
  if (receivedBytes.length !== contents.length || maxChunkBytes === 0) {
    throw badResponse(
      `the server began an upload of ${receivedBytes.length} matrices, not of ${contents.length}, ` +
        `in chunks of ${maxChunkBytes} bytes`,
    );
  }
  for (const [index, content] of contents.entries()) {
    const received = receivedBytes[index] ?? 0n;
    if (received <= content.length) continue;
    throw badResponse(`the server has ${received} bytes of a matrix of ${content.length}`);
  }
}

/**
 * The same for the same dictionary, so that its upload goes on where it was cut; but random in pages
 * that came in plaintext, where browsers have no digest.
 */
async function uploadId(
  request: BeginUploadRequest,
  contents: readonly Uint8Array[],
): Promise<string> {
  const subtle = crypto.subtle as SubtleCrypto | undefined;
  if (!subtle) return randomId();
  const parts = [toBinary(BeginUploadRequestSchema, request), ...contents];
  const digests = new Uint8Array(32 * parts.length);
  for (const [index, part] of parts.entries()) {
    // What is in shared memory cannot be digested, so it is copied.
    const bytes =
      part.buffer instanceof ArrayBuffer ? (part as Uint8Array<ArrayBuffer>) : part.slice();
    digests.set(new Uint8Array(await subtle.digest("SHA-256", bytes)), 32 * index);
  }
  return hexadecimal(new Uint8Array(await subtle.digest("SHA-256", digests)));
}
