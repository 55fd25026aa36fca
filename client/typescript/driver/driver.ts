// Answers questions of tests/conformance, one JSON object in each line, with the public API alone.
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import {
  fromJson,
  toJson,
  type DescMessage,
  type DescMethod,
  type JsonObject,
  type JsonValue,
  type Message,
} from "@bufbuild/protobuf";
import { context, propagation, ROOT_CONTEXT } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import {
  above,
  ActserveError,
  add,
  below,
  changeFeatures,
  connect,
  decodeTensor,
  feature,
  features,
  positions,
  probe,
  site,
  tensor,
  type Client,
  type Explained,
  type Fetched,
  type FeatureChanges,
  type Float32Tensor,
  type Generated,
  type Graph,
  type MeasuredHeads,
  type ReadoutResult,
  type Reconstructed,
  type Replayed,
  type Sequence,
  type Swept,
  type TokenEffect,
} from "@actserve/client/node";
import * as v1 from "@actserve/client/v1";
import { connect as connectWeb } from "@actserve/client/web";

interface Question {
  readonly id: number;
  readonly operation: string;
  readonly client?: {
    readonly targets: string[];
    /** The client of browsers, to the first of the targets. */
    readonly web?: boolean;
    readonly token?: string;
    readonly allow_plaintext_token?: boolean;
    readonly tls?: { ca_file?: string; cert_file?: string; key_file?: string };
    readonly timeout_s?: number | null;
    readonly model?: string;
    readonly metadata?: Record<string, string>;
    readonly traceparent?: string;
  };
  readonly method?: string;
  readonly name?: string;
  readonly request?: JsonObject;
  readonly text?: string;
  readonly tensor?: JsonValue;
  readonly shape?: number[];
  readonly data?: string;
  readonly take?: number;
  readonly cancel_after?: number;
  readonly cancel_after_s?: number;
  readonly count?: number;
  readonly cancel_every?: number;
  readonly seconds?: number;
  readonly concurrency?: number;
  readonly sites?: string[];
  readonly vector?: Vector;
  readonly coefficient?: number;
  readonly site?: string;
  readonly matrices?: { role: "ENCODER" | "DECODER"; shape: number[]; data: string }[];
  readonly dictionary?: string;
  readonly features?: number[];
  readonly k?: number;
  readonly top?: number;
  readonly positions?: string;
  readonly values?: FeatureChanges["values"];
  readonly additions?: FeatureChanges["additions"];
  readonly factors?: FeatureChanges["factors"];
  readonly when?: {
    readonly site: string;
    readonly direction: Vector;
    readonly bias?: number;
    readonly above?: number;
    readonly below?: number;
    readonly aggregator?: JsonObject;
  };
}

/** One to send along, the name of a stored one, or a feature of a dictionary. */
type Vector =
  string | { readonly data: string } | { readonly dictionary: string; readonly index: number };

interface Answer {
  result?: JsonValue;
  error?: JsonValue;
}

const SERVICES = Object.values(v1).filter(
  (value): value is Extract<typeof value, { kind: "service" }> =>
    typeof value === "object" && "kind" in value && value.kind === "service",
);

// Without an SDK nothing keeps a context and nothing writes it: the program has to say what does.
context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
propagation.setGlobalPropagator(new W3CTraceContextPropagator());

async function answered(question: Question, warnings: string[]): Promise<Answer> {
  try {
    switch (question.operation) {
      case "parse_site":
        return { result: json(v1.SiteSchema, site(given(question.text))) };
      case "parse_positions":
        return { result: json(v1.PositionSelectorSchema, positions(given(question.text))) };
      case "decode_tensor":
        return {
          result: array(decodeTensor(fromJson(v1.TensorSchema, given(question.tensor)))),
        };
      case "encode_tensor":
        return { result: json(v1.TensorSchema, encoded(question)) };
      case "build_add":
        return { result: json(v1.InterventionSchema, built(question)) };
      case "build_features":
        return { result: json(v1.InterventionSchema, changed(question)) };
      case "build_feature_readout":
        return { result: json(v1.ReadoutSchema, featureReadout(question)) };
      case "streams":
        return { result: await streams(question, warnings) };
      default:
        return await withClient(question, warnings, (client) => called(client, question));
    }
  } catch (thrown) {
    return { error: errorOf(thrown) };
  }
}

async function withClient<T>(
  { client: options }: Question,
  warnings: string[],
  use: (client: Client) => Promise<T>,
): Promise<T> {
  const { targets, web, token, allow_plaintext_token, tls, timeout_s, model, metadata } =
    given(options);
  const read = (path: string | undefined) => (path === undefined ? undefined : readFileSync(path));
  const defaults = {
    token,
    allowPlaintextToken: allow_plaintext_token,
    timeoutMs: timeout_s === null ? Infinity : timeout_s && timeout_s * 1e3,
    model,
    headers: metadata,
    warn: (message: string) => warnings.push(message),
  };
  const client = web
    ? connectWeb(`http://${given(targets[0])}`, defaults)
    : connect(targets, {
        ...defaults,
        tls: tls && { ca: read(tls.ca_file), cert: read(tls.cert_file), key: read(tls.key_file) },
      });
  try {
    return await use(client);
  } finally {
    client.close();
  }
}

async function called(client: Client, question: Question): Promise<Answer> {
  const signal =
    question.cancel_after_s === undefined
      ? undefined
      : AbortSignal.timeout(question.cancel_after_s * 1e3);
  switch (question.operation) {
    case "unary":
      return { result: await unary(client, question) };
    case "list":
      return { result: { names: await names(client, question) } };
    case "stream":
      return stream(client, question, signal);
    case "collect":
      return { result: (await collected(client, question, signal)).answer };
    case "measure":
      return { result: await measured(client, question) };
    case "watch":
      return watched(client, question);
    case "upload":
      return { result: { name: await uploaded(client, question) } };
    case "graph":
      return { result: await graph(client, question) };
    case "logit_effects":
      return { result: await logitEffects(client, question) };
    case "wait":
      return { result: { name: (await client.waitForMonitor(given(question.name))).name } };
    default:
      throw new Error(`there is no operation ${question.operation}`);
  }
}

async function unary(client: Client, question: Question): Promise<JsonValue> {
  const method = methodOf(question);
  const request = message(method.input, question) as never;
  const called: unknown = UNARY.has(method.localName) ? client : client.stub(method.parent);
  const call = given((called as Record<string, Unary>)[method.localName]);
  return json(method.output, await call.call(called, request));
}

type Unary = (this: unknown, request: Message) => Promise<Message>;

const UNARY = new Set([
  "getModel",
  "tokenize",
  "getKeptActivations",
  "deleteKeptActivations",
  "getNla",
  "scoreExplanations",
  "setExplanationBaseline",
  "deleteExplanationBaseline",
  "createSteeringVector",
  "makeSteeringVector",
  "combineSteeringVectors",
  "getSteeringVector",
  "updateSteeringVector",
  "deleteSteeringVector",
  "getDictionary",
  "deleteDictionary",
  "setFeatureLabels",
  "createAttributionGraph",
  "getAttributionGraph",
  "deleteAttributionGraph",
  "createMonitor",
  "getMonitor",
  "updateMonitor",
  "deleteMonitor",
  "fitMonitor",
  "getMonitorScores",
  "getAlert",
  "decideAlert",
  "deleteAlerts",
] satisfies (keyof Client)[] as string[]);

async function names(client: Client, question: Question): Promise<string[]> {
  const found: string[] = [];
  if (question.take === 0) return found;
  for await (const { name } of listed(client, question)) {
    found.push(name);
    if (found.length === question.take) break;
  }
  return found;
}

function listed(client: Client, question: Question): AsyncIterable<{ name: string }> {
  switch (question.method) {
    case "ListModels":
      return client.listModels(message(v1.ListModelsRequestSchema, question));
    case "ListNlas":
      return client.listNlas(message(v1.ListNlasRequestSchema, question));
    case "ListSteeringVectors":
      return client.listSteeringVectors(message(v1.ListSteeringVectorsRequestSchema, question));
    case "ListDictionaries":
      return client.listDictionaries(message(v1.ListDictionariesRequestSchema, question));
    case "ListAttributionGraphs":
      return client.listAttributionGraphs(message(v1.ListAttributionGraphsRequestSchema, question));
    case "ListMonitors":
      return client.listMonitors(message(v1.ListMonitorsRequestSchema, question));
    case "ListAlerts":
      return client.listAlerts(message(v1.ListAlertsRequestSchema, question));
    default:
      return client.listKeptActivations(message(v1.ListKeptActivationsRequestSchema, question));
  }
}

/** The call of a stream. */
function opened(client: Client, question: Question, signal?: AbortSignal) {
  const options = signal && { signal };
  switch (question.method) {
    case "FetchActivations":
      return client.fetchActivations(message(v1.FetchActivationsRequestSchema, question), options);
    case "Generate":
      return client.generate(message(v1.GenerateRequestSchema, question), options);
    case "ExplainActivations":
      return client.explainActivations(
        message(v1.ExplainActivationsRequestSchema, question),
        options,
      );
    case "ExplainText":
      return client.explainText(message(v1.ExplainTextRequestSchema, question), options);
    case "CompareActivations":
      return client.compareActivations(
        message(v1.CompareActivationsRequestSchema, question),
        options,
      );
    case "ReconstructActivations":
      return client.reconstructActivations(
        message(v1.ReconstructActivationsRequestSchema, question),
        options,
      );
    case "MeasureHeads":
      return client.measureHeads(message(v1.MeasureHeadsRequestSchema, question), options);
    case "WatchAttributionGraph":
      return client.watchAttributionGraph(
        message(v1.WatchAttributionGraphRequestSchema, question),
        options,
      );
    case "RunSweep":
      return client.runSweep(message(v1.RunSweepRequestSchema, question), options);
    case "ReplayMonitors":
      return client.replayMonitors(message(v1.ReplayMonitorsRequestSchema, question), options);
    default:
      throw new Error(`there is no stream ${String(question.method)}`);
  }
}

async function stream(client: Client, question: Question, signal?: AbortSignal): Promise<Answer> {
  const controller = new AbortController();
  signal?.addEventListener("abort", () => {
    controller.abort();
  });
  const events: string[] = [];
  try {
    for await (const response of opened(client, question, controller.signal)) {
      events.push(eventOf(response.event));
      if (events.length === question.cancel_after) controller.abort();
    }
  } catch (thrown) {
    return { result: { events }, error: errorOf(thrown) };
  }
  return { result: { events } };
}

/** Tells alerts until there are enough of them. */
async function watched(client: Client, question: Question): Promise<Answer> {
  const alerts: JsonObject[] = [];
  try {
    for await (const { alert, lostBefore } of client.watchAlerts(
      message(v1.WatchAlertsRequestSchema, question),
    )) {
      alerts.push({ name: alert.name, lost_before: Number(lostBefore) });
      if (alerts.length === question.take) break;
    }
  } catch (thrown) {
    return { result: { alerts }, error: errorOf(thrown) };
  }
  return { result: { alerts } };
}

/** The name of an event as the contract has it; `unknown` if the client does not know it. */
function eventOf(event: unknown): string {
  const outer = event as { case?: string | undefined; event?: unknown } | undefined;
  if (outer && "event" in outer) return eventOf(outer.event); // Those that explain.
  return outer?.case ? snakeCase(outer.case) : "unknown";
}

function snakeCase(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** The answer, and how many bytes of float32 rows it has. */
async function collected(
  client: Client,
  question: Question,
  signal?: AbortSignal,
): Promise<{ answer: JsonValue; bytes: number }> {
  const whole = await opened(client, question, signal).collect();
  if ("items" in whole) return { answer: fetched(whole), bytes: bytesOf(whole.items) };
  if ("samples" in whole) return { answer: generated(whole), bytes: bytesOf(whole.samples) };
  if ("heads" in whole) return { answer: heads(whole), bytes: 0 };
  if ("nodes" in whole) return { answer: traced(whole), bytes: 0 };
  if ("replayed" in whole) return { answer: replayed(whole), bytes: 0 };
  if ("cells" in whole) return { answer: swept(whole), bytes: 0 };
  if ("explanations" in whole) return { answer: explained(whole), bytes: 0 };
  return { answer: reconstructed(whole), bytes: whole.data.byteLength };
}

function fetched({ callId, items, statistics }: Fetched): JsonValue {
  const answer: JsonObject = {
    call_id: callId,
    sequences: items.map((item) => ({
      index: item.index,
      key: item.key,
      ...(item.error ? { error: errorOf(item.error) } : sequence(item)),
    })),
  };
  if (statistics.size) {
    answer.statistics = object(statistics, (sites) =>
      object(sites, (labels) =>
        object(labels, ({ rows, mean, secondMoments }) => ({
          rows: `bigint:${rows}`,
          mean: array(mean),
          second_moments: array(secondMoments),
        })),
      ),
    );
  }
  return answer;
}

function generated({ callId, samples }: Generated): JsonValue {
  return {
    call_id: callId,
    sequences: samples.map((sample) => ({
      index: sample.index,
      text: sample.text,
      finish_reason: finishReason(sample.finishReason),
      ...sequence(sample),
      ...(sample.stoppedBy.case === "monitor" && { monitor: sample.stoppedBy.value }),
      ...(sample.alerts.length && {
        alerts: sample.alerts.map(({ monitor, level, score, position }) => ({
          monitor,
          level: levelName(level),
          score,
          position,
        })),
      }),
      ...(sample.monitorScores.length && { monitor_scores: sample.monitorScores.map(scored) }),
      ...(sample.monitorInterventions.length && {
        monitor_interventions: sample.monitorInterventions.map(intervened),
      }),
    })),
  };
}

function replayed({ callId, replayed }: Replayed): JsonValue {
  return {
    call_id: callId,
    items: replayed.map(({ key, error, scores }, index) => ({
      index,
      key,
      ...(error ? { error: errorOf(error) } : { scores: scores.map(scored) }),
    })),
  };
}

function intervened(changes: v1.MonitorInterventions): JsonObject {
  return {
    monitor: changes.monitor,
    level: levelName(changes.level),
    first_position: changes.firstPosition,
    interventions: changes.interventions.map((report) => ({
      rows: Number(report.rows),
      changed_rows: Number(report.changedRows),
      reused_rows: Number(report.reusedRows),
      mean_relative_change: report.meanRelativeChange ?? null,
    })),
  };
}

function scored(score: v1.MonitorScore): JsonObject {
  return {
    monitor: score.monitor,
    tokens: score.tokens,
    score: score.score,
    highest_score: score.highestScore,
    highest_position: score.highestPosition,
    level: levelName(score.level),
    ...(score.tokenScores && {
      positions: score.positions,
      ...array(decodeTensor(score.tokenScores)),
    }),
  };
}

/** The name of a level; null for none. */
function levelName(level: v1.AlertLevel): string | null {
  const names: Readonly<Record<number, string | undefined>> = v1.AlertLevel;
  return level ? (names[level] ?? String(level)) : null;
}

function finishReason(reason: v1.FinishReason): string {
  const names: Readonly<Record<number, string | undefined>> = v1.FinishReason;
  return names[reason] ?? String(reason);
}

function sequence({ tokenIds, readouts }: Sequence): JsonObject {
  return { token_ids: [...tokenIds], readouts: object(readouts, readout) };
}

function readout(result: ReadoutResult): JsonValue {
  switch (result.kind) {
    case "rows":
      return {
        rows: object(result.sites, (rows) => ({
          positions: [...rows.positions],
          ...array(rows),
          ...(rows.indices && { indices: [...rows.indices] }),
        })),
      };
    case "predictions":
      return {
        predictions: object(result.sites, (found) => ({
          positions: [...found.positions],
          top_ids: found.topIds.flat(),
          top_texts: found.topTexts.flat(),
          ...(found.topLogprobs && { top_logprobs: array(found.topLogprobs) }),
          ...(found.tokenLogprobs && { token_logprobs: array(found.tokenLogprobs) }),
          ...(found.nextTokenLogprobs && { next_token_logprobs: array(found.nextTokenLogprobs) }),
        })),
      };
    case "attention":
      return {
        attention: object(result.heads, (pattern) => ({
          queries: [...pattern.queries],
          ...array(pattern),
          ...(pattern.keys && { keys: [...pattern.keys] }),
        })),
      };
    case "attentionSummary":
      return {
        attention_summary: object(result.layers, ({ queries, previousToken }) => ({
          queries,
          previous_token: array(previousToken),
        })),
      };
    case "logitAttribution":
      return {
        logit_attribution: object(result.sites, (found) => ({
          positions: [...found.positions],
          ...array(found),
        })),
      };
    case "kept":
      return { kept: result.name ?? null };
  }
}

function explained({ callId, nla, explanations }: Explained): JsonValue {
  return {
    call_id: callId,
    nla,
    explanations: explanations.map(({ rowIndex, sampleIndex, text }) => ({
      row: rowIndex,
      sample: sampleIndex,
      text,
    })),
  };
}

function swept({ callId, cells }: Swept): JsonValue {
  return {
    call_id: callId,
    cells: cells.map(({ cell, error }) => ({
      at: [
        cell.promptIndex,
        cell.variantIndex,
        cell.coefficientIndex ?? null,
        cell.siteIndex ?? null,
        cell.positionIndex ?? null,
      ],
      ...(error
        ? { error: errorOf(error) }
        : {
            text: cell.text,
            finish_reason: cell.finishReason ? finishReason(cell.finishReason) : null,
            answer_logprobs: cell.answerLogprobs,
            score_values: cell.scoreValues,
            perplexity: cell.perplexity ?? null,
            repetition: cell.repetition ?? null,
            stored: cell.stored,
          }),
    })),
  };
}

function built({ sites, vector, coefficient, when }: Question): v1.Intervention {
  const intervention = add(given(sites), vectorOf(given(vector)), coefficient);
  if (when) {
    const scored = probe(when.site, vectorOf(when.direction));
    if (when.bias !== undefined) scored.bias = when.bias;
    const condition =
      when.above === undefined ? below(scored, given(when.below)) : above(scored, when.above);
    if (when.below !== undefined) condition.below = when.below;
    if (when.aggregator) {
      condition.aggregator = fromJson(v1.ScoreAggregatorSchema, when.aggregator);
    }
    intervention.when = condition;
  }
  return intervention;
}

function vectorOf(vector: Vector) {
  if (typeof vector === "string") return vector;
  return "data" in vector ? floats(vector.data) : feature(vector.dictionary, vector.index);
}

function changed({ sites, dictionary, values, additions, factors }: Question): v1.Intervention {
  return changeFeatures(given(sites), given(dictionary), { values, additions, factors });
}

function featureReadout({ name, sites, dictionary, positions, top }: Question): v1.Readout {
  return features(given(name), given(sites), given(dictionary), { positions, top });
}

async function logitEffects(client: Client, question: Question): Promise<JsonValue> {
  const told = (effects: readonly TokenEffect[]) =>
    effects.map(({ id, text, effect }) => ({
      id,
      text,
      ...array({ shape: [1], data: Float32Array.of(effect) }),
    }));
  const found = await client.logitEffects(
    given(question.dictionary),
    given(question.features),
    question.k,
  );
  return {
    effects: found.map(({ feature, top, bottom }) => ({
      feature,
      top: told(top),
      bottom: told(bottom),
    })),
  };
}

/** The name of a sparse autoencoder that was uploaded. */
async function uploaded(client: Client, question: Question): Promise<string> {
  const matrices = given(question.matrices);
  const { name } = await client.uploadDictionary(
    {
      model: `models/${question.client?.model ?? ""}`,
      dictionaryId: given(question.name),
      dictionary: {
        kind: v1.DictionaryKind.SPARSE_AUTOENCODER,
        site: site(given(question.site)),
        features: given(matrices[0]?.shape[0]),
        activation: { case: "relu", value: {} },
      },
      matrices: matrices.map(({ role, shape }) => ({
        role: v1.MatrixRole[role],
        elementType: v1.ElementType.F32,
        shape,
      })),
    },
    matrices.map(({ data }) => Buffer.from(data, "hex")),
  );
  return name;
}

const MEANS = [
  "previousToken",
  "currentToken",
  "firstToken",
  "induction",
  "duplicateToken",
  "entropy",
  "distance",
  "distanceVariance",
] as const;

function heads({ callId, layers, heads, prompts }: MeasuredHeads): JsonValue {
  const every = heads.flat();
  const shape = [layers.length, every.length / layers.length];
  return {
    call_id: callId,
    layers: [...layers],
    queries: `bigint:${every[0]?.queries ?? 0n}`,
    means: Object.fromEntries(
      MEANS.map((name) => [
        snakeCase(name),
        array({ shape, data: Float32Array.from(every, (each) => each[name]) }),
      ]),
    ),
    query_tokens: every.map(({ topQueryTokens }) => tokenWeights(topQueryTokens)),
    key_tokens: every.map(({ topKeyTokens }) => tokenWeights(topKeyTokens)),
    items: prompts.map(({ key, error, prompt, patterns }, index) => ({
      index,
      key,
      ...(error
        ? { error: errorOf(error) }
        : {
            token_ids: prompt?.ids ?? [],
            patterns: Object.fromEntries(
              [...patterns].flatMap(([layer, heads]) =>
                [...heads].map(([head, { queries, keys, weights }]) => [
                  `${layer}.${head}`,
                  { queries: [...queries], keys: [...keys], ...vector(weights) },
                ]),
              ),
            ),
          }),
    })),
  };
}

function tokenWeights(tokens: readonly v1.TokenWeight[]): JsonObject {
  return {
    ids: tokens.map(({ tokenId }) => tokenId),
    texts: tokens.map(({ text }) => text),
    ...vector(tokens.map(({ weight }) => weight)),
  };
}

/** Begins a graph, and waits for it. */
async function graph(client: Client, question: Question): Promise<JsonValue> {
  const request = message(v1.CreateAttributionGraphRequestSchema, question);
  const { attributionGraph } = await client.createAttributionGraph(request);
  return traced(await client.waitForAttributionGraph(given(attributionGraph).name));
}

function traced({ nodes, sources, targets, weights }: Graph): JsonValue {
  const told = nodes.map(({ kind }) => kindOf(kind));
  return {
    nodes: nodes.map(({ position }, index) => {
      const { kind, of } = given(told[index]);
      return { kind, of, position };
    }),
    influences: vector(nodes.map(({ influence }) => influence)),
    activations: vector(told.map(({ value }) => value ?? 0)),
    sources: [...sources],
    targets: [...targets],
    weights: vector(weights),
  };
}

function kindOf(kind: v1.AttributionNode["kind"]): { kind: string; of: number[]; value?: number } {
  switch (kind.case) {
    case "embedding":
      return { kind: "embedding", of: [kind.value.tokenId] };
    case "neuron":
      return {
        kind: "neuron",
        of: [kind.value.layer, kind.value.neuron],
        value: kind.value.activation,
      };
    case "feature":
      return {
        kind: "feature",
        of: [kind.value.dictionaryIndex, kind.value.featureIndex],
        value: kind.value.activation,
      };
    case "reconstructionError":
      return { kind: "error", of: [kind.value.dictionaryIndex] };
    case "logit":
      return { kind: "logit", of: [kind.value.tokenId], value: kind.value.probability };
    case undefined:
      return { kind: "unknown", of: [] };
  }
}

function vector(values: ArrayLike<number>): JsonObject {
  return array({ shape: [values.length], data: Float32Array.from(values) });
}

function reconstructed(whole: Reconstructed): JsonValue {
  return { call_id: whole.callId, ...array(whole) };
}

async function streams(question: Question, warnings: string[]): Promise<JsonValue> {
  const before = resources();
  const tally = await withClient(question, warnings, async (client) => {
    const ends = await Promise.all(
      Array.from({ length: given(question.count) }, async (_, index) => {
        const isCancelled = (index + 1) % given(question.cancel_every) === 0;
        // eslint-disable-next-line no-empty-pattern
        for await (const {} of opened(client, question)) {
          if (isCancelled) return true; // Leaving the loop cancels the call.
        }
        return false;
      }),
    );
    const cancelled = ends.filter(Boolean).length;
    return { finished: ends.length - cancelled, cancelled };
  });
  // Sockets close when the event loop comes to them.
  for (let waited = 0; waited < 100 && resources() > before; waited++) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return { ...tally, leaked: Math.max(0, resources() - before) };
}

/** What keeps the event loop busy: sockets, timers and the like. */
function resources(): number {
  return process.getActiveResourcesInfo().length;
}

async function measured(client: Client, question: Question): Promise<JsonValue> {
  const begun = performance.now();
  const end = begun + given(question.seconds) * 1e3;
  let [calls, bytes] = [0, 0];
  await Promise.all(
    Array.from({ length: given(question.concurrency) }, async () => {
      while (performance.now() < end) {
        const whole = await opened(client, question).collect();
        if ("items" in whole) bytes += bytesOf(whole.items);
        else if ("samples" in whole) bytes += bytesOf(whole.samples);
        else if ("data" in whole) bytes += whole.data.byteLength;
        calls++;
      }
    }),
  );
  return { calls, bytes, seconds: (performance.now() - begun) / 1e3 };
}

function bytesOf(sequences: readonly Sequence[]): number {
  let bytes = 0;
  for (const sequence of sequences) {
    if (sequence.error) continue;
    for (const result of sequence.readouts.values()) {
      if (result.kind !== "rows") continue;
      for (const { data } of result.sites.values()) bytes += data.byteLength;
    }
  }
  return bytes;
}

function encoded({ shape, data }: Question): v1.Tensor {
  return tensor(floats(given(data)), given(shape));
}

function floats(data: string): Float32Array {
  return new Float32Array(Uint8Array.from(Buffer.from(data, "hex")).buffer);
}

function array({ shape, data }: Float32Tensor): { shape: number[]; data: string } {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { shape: [...shape], data: bytes.toString("hex") };
}

function errorOf(thrown: unknown): JsonValue {
  if (!(thrown instanceof ActserveError)) throw thrown;
  const { code, reason, field, metadata, requestId, retryAfterMs } = thrown;
  return {
    code,
    reason,
    message: thrown.message,
    field,
    metadata: { ...metadata },
    retry_after_s: retryAfterMs === undefined ? null : retryAfterMs / 1e3,
    request_id: requestId,
  };
}

function methodOf({ method }: Question): DescMethod {
  const found = SERVICES.flatMap(({ methods }) => methods).find(({ name }) => name === method);
  return given(found);
}

function message<Desc extends DescMessage>(schema: Desc, { request }: Question) {
  return fromJson(schema, request ?? {});
}

function json<Desc extends DescMessage>(schema: Desc, value: Parameters<typeof toJson<Desc>>[1]) {
  return toJson(schema, value);
}

function object<Key, Value>(
  map: ReadonlyMap<Key, Value>,
  each: (value: Value) => JsonValue,
): JsonObject {
  return Object.fromEntries([...map].map(([key, value]) => [String(key), each(value)]));
}

function given<T>(value: T | null | undefined): T {
  if (value === undefined || value === null) throw new Error("the question lacks something");
  return value;
}

for await (const line of createInterface({ input: process.stdin })) {
  const question = JSON.parse(line) as Question;
  const warnings: string[] = [];
  const carrier = { traceparent: question.client?.traceparent };
  const ask = () => answered(question, warnings);
  // Once a context was entered, Node.js does more for every promise, which is not to be measured.
  const answer = await (carrier.traceparent === undefined
    ? ask()
    : context.with(propagation.extract(ROOT_CONTEXT, carrier), ask));
  const text = JSON.stringify({ id: question.id, ...answer, warnings });
  // JSON has numbers of any size, but JavaScript does not write them.
  process.stdout.write(`${text.replaceAll(/"bigint:(\d+)"/g, "$1")}\n`);
}
