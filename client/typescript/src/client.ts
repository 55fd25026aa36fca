import {
  clone,
  create,
  type DescMessage,
  type DescService,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import type { CallOptions, Client as Stub, Transport } from "@connectrpc/connect";

import { watched, type WatchedAlert } from "./alerts.js";
import { Calls } from "./calls.js";
import type { Fetched, Generated } from "./collected.js";
import { ExplainCollector, type Explained } from "./collectors/explain.js";
import { FetchCollector } from "./collectors/fetch.js";
import { GraphCollector, type Graph } from "./collectors/graph.js";
import { HeadsCollector, type MeasuredHeads } from "./collectors/heads.js";
import { GenerateCollector } from "./collectors/generate.js";
import { ReconstructCollector, type Reconstructed } from "./collectors/reconstruct.js";
import { ReplayCollector, type Replayed } from "./collectors/replay.js";
import { SweepCollector, type Swept } from "./collectors/sweep.js";
import { effectsRequest, strongest, type Effect, type LogitEffect } from "./effects.js";
import { badResponse, errorOfWork, invalid } from "./errors.js";
import { randomId } from "./ids.js";
import { checkedHeaders, checkedTimeout } from "./options.js";
import { prompt } from "./requests.js";
import * as v1 from "./v1.js";
import { EventStream, stubOf } from "./stream.js";
import { uploaded } from "./uploads.js";

/** What a request is made of: a message, or an object of its fields. */
export type Init<Desc extends DescMessage> = MessageInitShape<Desc>;

/** Ten minutes. */
const DEFAULT_TIMEOUT_MS = 600_000;

/** How often `waitForMonitor` and `waitForAttributionGraph` look whether what they wait for is made. */
const POLL_MS = 1_000;

/** How a client makes its calls, whatever the transport. */
export interface CallDefaults {
  /** Sent with every call as `authorization: Bearer <token>`. */
  readonly token?: string | undefined;
  /**
   * The deadline of a call with all its attempts, but for `watchAlerts`; 600 000 when unset,
   * `Infinity` for none.
   */
  readonly timeoutMs?: number | undefined;
  /**
   * The model that calls are for, such as `models/smollm2-135m`: sent as the header
   * `x-actserve-model`, by which a proxy in front of several servers can choose one.
   */
  readonly model?: string | undefined;
  /** More headers for every call. */
  readonly headers?: HeadersInit | undefined;
  /** Takes warnings, such as that of a server which is older than the client; `console.warn`. */
  readonly warn?: ((message: string) => void) | undefined;
}

/** What a client is made of. */
export interface ClientOptions extends CallDefaults {
  /** Any transport of connect. Retries of its own should be off. */
  readonly transport: Transport;
  /** Adds headers of the moment to a call, such as a trace context. */
  readonly addHeaders?: ((headers: Headers) => void | Promise<void>) | undefined;
  /** Lets go of what the transport holds; called by {@link Client.close}. */
  readonly close?: (() => void) | undefined;
}

/**
 * A client of actserve. Calls that fail throw {@link ActserveError}; all of them take a `signal`
 * that cancels them and a `timeoutMs` of their own.
 *
 * In Node.js, `connect` of `@actserve/client/node` makes one of an address.
 */
export class Client {
  /** What all calls go through, for stubs of your own. */
  readonly transport: Transport;
  readonly #calls: Calls;
  readonly #close: (() => void) | undefined;
  readonly #models: Stub<typeof v1.ModelService>;
  readonly #generation: Stub<typeof v1.GenerationService>;
  readonly #kept: Stub<typeof v1.KeptActivationsService>;
  readonly #explanations: Stub<typeof v1.ExplanationService>;
  readonly #vectors: Stub<typeof v1.SteeringVectorService>;
  readonly #dictionaries: Stub<typeof v1.DictionaryService>;
  readonly #heads: Stub<typeof v1.HeadService>;
  readonly #graphs: Stub<typeof v1.AttributionGraphService>;
  readonly #sweeps: Stub<typeof v1.SweepService>;
  readonly #monitors: Stub<typeof v1.MonitorService>;

  /** @throws {@link ActserveError} `FIELD_INVALID`, naming the option that cannot be used */
  constructor(options: ClientOptions) {
    this.#calls = new Calls({
      transport: options.transport,
      timeoutMs: checkedTimeout(options.timeoutMs ?? DEFAULT_TIMEOUT_MS),
      headers: headersOf(options),
      model: modelName(options.model),
      addHeaders: options.addHeaders,
      warn: options.warn ?? console.warn,
    });
    this.transport = this.#calls;
    this.#close = options.close;
    this.#models = this.stub(v1.ModelService);
    this.#generation = this.stub(v1.GenerationService);
    this.#kept = this.stub(v1.KeptActivationsService);
    this.#explanations = this.stub(v1.ExplanationService);
    this.#vectors = this.stub(v1.SteeringVectorService);
    this.#dictionaries = this.stub(v1.DictionaryService);
    this.#heads = this.stub(v1.HeadService);
    this.#graphs = this.stub(v1.AttributionGraphService);
    this.#sweeps = this.stub(v1.SweepService);
    this.#monitors = this.stub(v1.MonitorService);
  }

  /**
   * The methods of a service as they are generated, for what has no method here. Headers,
   * deadlines, further attempts and errors are the same.
   */
  stub<Service extends DescService>(service: Service): Stub<Service> {
    return stubOf(service, this.transport);
  }

  /** Ends the calls that are running, with `CANCELLED`, and lets go of the connections. */
  close(): void {
    this.#calls.close();
    this.#close?.();
  }

  /** The served models, page by page as they are needed. */
  listModels(
    request: Init<typeof v1.ListModelsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.Model> {
    return pages(
      v1.ListModelsRequestSchema,
      request,
      (page) => this.#models.listModels(page, options),
      ({ models }) => models,
    );
  }

  /** One model: its layers, hook points, limits and features. */
  getModel(
    request: Init<typeof v1.GetModelRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetModelResponse> {
    return this.#models.getModel(request, options);
  }

  /** A prompt as the model would see it, without running it. */
  tokenize(
    request: Init<typeof v1.TokenizeRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.TokenizeResponse> {
    return this.#models.tokenize(request, options);
  }

  /** Reads activations of many items, each in one forward pass. */
  fetchActivations(
    request: Init<typeof v1.FetchActivationsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.FetchActivationsResponse, Fetched> {
    const message = create(v1.FetchActivationsRequestSchema, request);
    return new EventStream(
      () => this.#generation.fetchActivations(message, options),
      () => new FetchCollector(message),
    );
  }

  /** Generates text, steered and read if the request says so. */
  generate(
    request: Init<typeof v1.GenerateRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.GenerateResponse, Generated> {
    const message = create(v1.GenerateRequestSchema, request);
    return new EventStream(
      () => this.#generation.generate(message, options),
      () => new GenerateCollector(message),
    );
  }

  /** What is kept under a name. */
  getKeptActivations(
    request: Init<typeof v1.GetKeptActivationsRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetKeptActivationsResponse> {
    return this.#kept.getKeptActivations(request, options);
  }

  /** What the caller's tenant keeps on the server, page by page as they are needed. */
  listKeptActivations(
    request: Init<typeof v1.ListKeptActivationsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.KeptActivations> {
    return pages(
      v1.ListKeptActivationsRequestSchema,
      request,
      (page) => this.#kept.listKeptActivations(page, options),
      ({ keptActivations }) => keptActivations,
    );
  }

  /** Frees what is kept under a name before it expires. */
  deleteKeptActivations(
    request: Init<typeof v1.DeleteKeptActivationsRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteKeptActivationsResponse> {
    return this.#kept.deleteKeptActivations(request, options);
  }

  /** The natural language autoencoders of a model, page by page as they are needed. */
  listNlas(
    request: Init<typeof v1.ListNlasRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.Nla> {
    return pages(
      v1.ListNlasRequestSchema,
      request,
      (page) => this.#explanations.listNlas(page, options),
      ({ nlas }) => nlas,
    );
  }

  /** One natural language autoencoder. */
  getNla(
    request: Init<typeof v1.GetNlaRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetNlaResponse> {
    return this.#explanations.getNla(request, options);
  }

  /** Puts rows into words. */
  explainActivations(
    request: Init<typeof v1.ExplainActivationsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.ExplainActivationsResponse, Explained> {
    const message = create(v1.ExplainActivationsRequestSchema, request);
    return new EventStream<v1.ExplainActivationsResponse, Explained>(
      () => this.#explanations.explainActivations(message, options),
      () => new ExplainCollector(message.spec, message.activations?.shape[0] ?? 0),
    );
  }

  /** Puts into words what the model thinks at the tokens of a prompt. */
  explainText(
    request: Init<typeof v1.ExplainTextRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.ExplainTextResponse, Explained> {
    const message = create(v1.ExplainTextRequestSchema, request);
    return new EventStream<v1.ExplainTextResponse, Explained>(
      () => this.#explanations.explainText(message, options),
      () => new ExplainCollector(message.spec, undefined, message.interventions.length),
    );
  }

  /** Puts the difference of rows into words. */
  compareActivations(
    request: Init<typeof v1.CompareActivationsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.CompareActivationsResponse, Explained> {
    const message = create(v1.CompareActivationsRequestSchema, request);
    return new EventStream<v1.CompareActivationsResponse, Explained>(
      () => this.#explanations.compareActivations(message, options),
      () => new ExplainCollector(message.spec, message.activations?.shape[0] ?? 0),
    );
  }

  /** Makes rows of texts. */
  reconstructActivations(
    request: Init<typeof v1.ReconstructActivationsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.ReconstructActivationsResponse, Reconstructed> {
    const message = create(v1.ReconstructActivationsRequestSchema, request);
    return new EventStream(
      () => this.#explanations.reconstructActivations(message, options),
      () => new ReconstructCollector(message),
    );
  }

  /** Tells how well texts account for rows. */
  scoreExplanations(
    request: Init<typeof v1.ScoreExplanationsRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.ScoreExplanationsResponse> {
    return this.#explanations.scoreExplanations(request, options);
  }

  /** Measures from rows what scores are relative to. */
  setExplanationBaseline(
    request: Init<typeof v1.SetExplanationBaselineRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.SetExplanationBaselineResponse> {
    return this.#explanations.setExplanationBaseline(request, options);
  }

  /** Forgets a baseline. */
  deleteExplanationBaseline(
    request: Init<typeof v1.DeleteExplanationBaselineRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteExplanationBaselineResponse> {
    return this.#explanations.deleteExplanationBaseline(request, options);
  }

  /**
   * Stores a vector. A request without a `requestId` is sent with one of its own, by which a call
   * that is made again makes nothing twice.
   */
  createSteeringVector(
    request: Init<typeof v1.CreateSteeringVectorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.CreateSteeringVectorResponse> {
    const message = identified(v1.CreateSteeringVectorRequestSchema, request);
    return this.#vectors.createSteeringVector(message, options);
  }

  /** Makes a vector of examples of two kinds, and stores it, as `createSteeringVector` does. */
  makeSteeringVector(
    request: Init<typeof v1.MakeSteeringVectorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.MakeSteeringVectorResponse> {
    const message = identified(v1.MakeSteeringVectorRequestSchema, request);
    return this.#vectors.makeSteeringVector(message, options);
  }

  /** Computes a vector from stored ones, and stores it, as `createSteeringVector` does. */
  combineSteeringVectors(
    request: Init<typeof v1.CombineSteeringVectorsRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.CombineSteeringVectorsResponse> {
    const message = identified(v1.CombineSteeringVectorsRequestSchema, request);
    return this.#vectors.combineSteeringVectors(message, options);
  }

  /** One vector; `decodeTensor` reads its elements, if they were asked for. */
  getSteeringVector(
    request: Init<typeof v1.GetSteeringVectorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetSteeringVectorResponse> {
    return this.#vectors.getSteeringVector(request, options);
  }

  /** The stored vectors that have some labels, page by page as they are needed. */
  listSteeringVectors(
    request: Init<typeof v1.ListSteeringVectorsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.SteeringVector> {
    return pages(
      v1.ListSteeringVectorsRequestSchema,
      request,
      (page) => this.#vectors.listSteeringVectors(page, options),
      ({ steeringVectors }) => steeringVectors,
    );
  }

  /** Replaces the labels of a vector. */
  updateSteeringVector(
    request: Init<typeof v1.UpdateSteeringVectorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.UpdateSteeringVectorResponse> {
    return this.#vectors.updateSteeringVector(request, options);
  }

  /** Deletes a vector. Runs that use it keep it. */
  deleteSteeringVector(
    request: Init<typeof v1.DeleteSteeringVectorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteSteeringVectorResponse> {
    return this.#vectors.deleteSteeringVector(request, options);
  }

  /** The dictionaries that the server has, page by page as they are needed. */
  listDictionaries(
    request: Init<typeof v1.ListDictionariesRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.Dictionary> {
    return pages(
      v1.ListDictionariesRequestSchema,
      request,
      (page) => this.#dictionaries.listDictionaries(page, options),
      ({ dictionaries }) => dictionaries,
    );
  }

  /** One dictionary, without its matrices. */
  getDictionary(
    request: Init<typeof v1.GetDictionaryRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetDictionaryResponse> {
    return this.#dictionaries.getDictionary(request, options);
  }

  /**
   * Stores a dictionary, chunk by chunk. A request without a `requestId` is sent with one that follows
   * from what is uploaded: the same call, made again after it was cut, goes on where it was, in another
   * program too. The options hold for each of its calls.
   *
   * @param contents the bytes of each of the request's matrices
   */
  uploadDictionary(
    request: Init<typeof v1.BeginUploadRequestSchema>,
    contents: readonly Uint8Array[],
    options?: CallOptions,
  ): Promise<v1.Dictionary> {
    const message = create(v1.BeginUploadRequestSchema, request);
    return uploaded(this.#dictionaries, message, contents, options);
  }

  /** Deletes a dictionary and its labels. Runs that use it keep it. */
  deleteDictionary(
    request: Init<typeof v1.DeleteDictionaryRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteDictionaryResponse> {
    return this.#dictionaries.deleteDictionary(request, options);
  }

  /** Says what features of a dictionary stand for. */
  setFeatureLabels(
    request: Init<typeof v1.SetFeatureLabelsRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.SetFeatureLabelsResponse> {
    return this.#dictionaries.setFeatureLabels(request, options);
  }

  /** What features of a dictionary stand for, by index, page by page as they are needed. */
  listFeatureLabels(
    request: Init<typeof v1.ListFeatureLabelsRequestSchema>,
    options?: CallOptions,
  ): AsyncIterable<v1.FeatureLabel> {
    return pages(
      v1.ListFeatureLabelsRequestSchema,
      request,
      (page) => this.#dictionaries.listFeatureLabels(page, options),
      ({ labels }) => labels,
    );
  }

  /**
   * The tokens that features raise and lower most by themselves, the `k` first of each.
   *
   * @param dictionary one that writes to the residual stream, by its name,
   * `models/{model}/dictionaries/{dictionary}`
   * @param features as many as a call has items, less one
   */
  async logitEffects(
    dictionary: string,
    features: readonly number[],
    k = 10,
    options?: CallOptions,
  ): Promise<LogitEffect[]> {
    const request = effectsRequest(dictionary, features);
    const fetched = await this.fetchActivations(request, options).collect();
    const found = features.map((_, index) => strongest(fetched, index + 1, k));
    const ids = found.flatMap(({ top, bottom }) => [...top, ...bottom].map(({ id }) => id));
    const texts = await this.#texts(request.model, ids, options);
    const told = (effects: Effect[]) =>
      effects.map(({ id, effect }) => ({ id, text: texts.get(id) ?? "", effect }));
    return features.map((feature, index) => ({
      feature,
      top: told(found[index]?.top ?? []),
      bottom: told(found[index]?.bottom ?? []),
    }));
  }

  /** Tokens, each decoded alone, by their ids. */
  async #texts(
    model: string,
    ids: readonly number[],
    options?: CallOptions,
  ): Promise<ReadonlyMap<number, string>> {
    const several = [...new Set(ids)].sort((a, b) => a - b);
    if (several.length === 0) return new Map();
    const tokenized = await this.tokenize({ model, prompt: prompt(several) }, options);
    const texts = tokenized.prompt?.texts ?? [];
    if (texts.length !== several.length) {
      throw badResponse(`the server sent ${texts.length} texts of ${several.length} tokens`);
    }
    return new Map(several.map((id, index) => [id, texts[index] ?? ""]));
  }

  /** Measures every attention head of some layers over a corpus, in one call. */
  measureHeads(
    request: Init<typeof v1.MeasureHeadsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.MeasureHeadsResponse, MeasuredHeads> {
    const message = create(v1.MeasureHeadsRequestSchema, request);
    return new EventStream(
      () => this.#heads.measureHeads(message, options),
      () => new HeadsCollector(message),
    );
  }

  /**
   * Begins a graph of what the next token of a prompt comes from, as `createSteeringVector` makes a
   * vector; `waitForAttributionGraph` waits for it.
   */
  createAttributionGraph(
    request: Init<typeof v1.CreateAttributionGraphRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.CreateAttributionGraphResponse> {
    const message = identified(v1.CreateAttributionGraphRequestSchema, request);
    return this.#graphs.createAttributionGraph(message, options);
  }

  /** What a graph is of and how far it has come, without nodes and edges. */
  getAttributionGraph(
    request: Init<typeof v1.GetAttributionGraphRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetAttributionGraphResponse> {
    return this.#graphs.getAttributionGraph(request, options);
  }

  /** The graphs of a model, without nodes and edges, page by page as they are needed. */
  listAttributionGraphs(
    request: Init<typeof v1.ListAttributionGraphsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.AttributionGraph> {
    return pages(
      v1.ListAttributionGraphsRequestSchema,
      request,
      (page) => this.#graphs.listAttributionGraphs(page, options),
      ({ attributionGraphs }) => attributionGraphs,
    );
  }

  /** Deletes a graph, and ends the work on it. */
  deleteAttributionGraph(
    request: Init<typeof v1.DeleteAttributionGraphRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteAttributionGraphResponse> {
    return this.#graphs.deleteAttributionGraph(request, options);
  }

  /** How far a graph has come, and then its nodes and edges, over one connection. */
  watchAttributionGraph(
    request: Init<typeof v1.WatchAttributionGraphRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.WatchAttributionGraphResponse, Graph> {
    return new EventStream(
      () => this.#graphs.watchAttributionGraph(request, options),
      () => new GraphCollector(),
    );
  }

  /**
   * A graph, once it is made. It waits for as long as that takes, also over connections that are lost, or
   * until the `signal` of the options; `timeoutMs` is that of each look.
   *
   * @throws {@link ActserveError} why it could not be made
   */
  async waitForAttributionGraph(name: string, options?: CallOptions): Promise<Graph> {
    for (;;) {
      const { attributionGraph } = await this.getAttributionGraph({ name }, options);
      const work = attributionGraph?.work;
      const state = work?.state;
      if (state === v1.WorkState.FAILED) throw errorOfWork(work);
      if (state !== v1.WorkState.WAITING && state !== v1.WorkState.RUNNING) {
        return this.watchAttributionGraph({ name }, options).collect();
      }
      await this.#calls.sleep(POLL_MS, options?.signal);
    }
  }

  /**
   * Runs many prompts under many interventions. Where the connection is lost, `collect` goes on
   * after the last cell that came; who reads events goes on by a request with its `resumeToken`. A
   * large sweep takes long: give it a `timeoutMs` that fits.
   */
  runSweep(
    request: Init<typeof v1.RunSweepRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.RunSweepResponse, Swept> {
    const message = create(v1.RunSweepRequestSchema, request);
    let collector: SweepCollector | undefined; // Only what is collected goes on by itself.
    return new EventStream<v1.RunSweepResponse, Swept>(
      () => {
        if (!collector) return this.#sweeps.runSweep(message, options);
        return this.#goingOn(message, collector, options);
      },
      () => (collector = new SweepCollector(message)),
    );
  }

  #goingOn(
    request: v1.RunSweepRequest,
    collector: SweepCollector,
    options?: CallOptions,
  ): AsyncIterable<v1.RunSweepResponse> {
    const message = clone(v1.RunSweepRequestSchema, request);
    return this.#calls.goingOn(
      (attempt) => {
        message.resumeToken = collector.begin();
        // Each attempt is a stream of its own, which may be cut short.
        return new EventStream(
          () => this.#sweeps.runSweep(message, attempt),
          () => collector,
        );
      },
      () => collector.come,
      options,
    );
  }

  /** Stores a monitor, as `createSteeringVector` does. */
  createMonitor(
    request: Init<typeof v1.CreateMonitorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.CreateMonitorResponse> {
    const message = identified(v1.CreateMonitorRequestSchema, request);
    return this.#monitors.createMonitor(message, options);
  }

  /** One monitor. */
  getMonitor(
    request: Init<typeof v1.GetMonitorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetMonitorResponse> {
    return this.#monitors.getMonitor(request, options);
  }

  /** The monitors of a model, page by page as they are needed. */
  listMonitors(
    request: Init<typeof v1.ListMonitorsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.Monitor> {
    return pages(
      v1.ListMonitorsRequestSchema,
      request,
      (page) => this.#monitors.listMonitors(page, options),
      ({ monitors }) => monitors,
    );
  }

  /** Replaces a monitor, or those of its fields that the mask names. */
  updateMonitor(
    request: Init<typeof v1.UpdateMonitorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.UpdateMonitorResponse> {
    return this.#monitors.updateMonitor(request, options);
  }

  /** Deletes a monitor. Its alerts stay. */
  deleteMonitor(
    request: Init<typeof v1.DeleteMonitorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DeleteMonitorResponse> {
    return this.#monitors.deleteMonitor(request, options);
  }

  /**
   * Begins to make a monitor of labelled examples, as `createSteeringVector` does; `waitForMonitor`
   * waits for it.
   */
  fitMonitor(
    request: Init<typeof v1.FitMonitorRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.FitMonitorResponse> {
    const message = identified(v1.FitMonitorRequestSchema, request);
    return this.#monitors.fitMonitor(message, options);
  }

  /**
   * A monitor, once `fitMonitor` has made it. It waits for as long as that takes, or until the
   * `signal` of the options; `timeoutMs` is that of each look. The monitor is paused until it is
   * updated.
   *
   * @throws {@link ActserveError} why it could not be fitted
   */
  async waitForMonitor(name: string, options?: CallOptions): Promise<v1.Monitor> {
    for (;;) {
      const { monitor } = await this.getMonitor({ name }, options);
      if (!monitor) throw badResponse("the server sent no monitor");
      const work = monitor.fit?.work;
      if (work?.state === v1.WorkState.FAILED) throw errorOfWork(work);
      if (work?.state !== v1.WorkState.WAITING && work?.state !== v1.WorkState.RUNNING) {
        return monitor;
      }
      await this.#calls.sleep(POLL_MS, options?.signal);
    }
  }

  /** How the scores of a monitor are distributed, and how far they have drifted. */
  getMonitorScores(
    request: Init<typeof v1.GetMonitorScoresRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetMonitorScoresResponse> {
    return this.#monitors.getMonitorScores(request, options);
  }

  /** Scores items by monitors, without acting and without alerts. */
  replayMonitors(
    request: Init<typeof v1.ReplayMonitorsRequestSchema>,
    options?: CallOptions,
  ): EventStream<v1.ReplayMonitorsResponse, Replayed> {
    const message = create(v1.ReplayMonitorsRequestSchema, request);
    return new EventStream(
      () => this.#monitors.replayMonitors(message, options),
      () => new ReplayCollector(message),
    );
  }

  /**
   * The alerts of all calls of the caller's tenant, as they are raised. Where the connection is lost
   * it goes on after the last alert that came, however long the server is gone, such as while it
   * starts again; `warn` is told when it is gone and when it is back. A first connection that cannot
   * be made, and any other error, ends it; a request with the `resumeToken` of the last alert goes on
   * later. It has no deadline unless it is given one, and ends with the loop or the `signal` of the
   * options.
   */
  watchAlerts(
    request: Init<typeof v1.WatchAlertsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<WatchedAlert> {
    // A copy, since `create` gives back what is a message already.
    const message = clone(
      v1.WatchAlertsRequestSchema,
      create(v1.WatchAlertsRequestSchema, request),
    );
    return watched(
      this.#calls,
      message,
      (message, options) => this.#monitors.watchAlerts(message, options),
      options,
    );
  }

  /** One alert as it is now. */
  getAlert(
    request: Init<typeof v1.GetAlertRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.GetAlertResponse> {
    return this.#monitors.getAlert(request, options);
  }

  /** Alerts, the newest first, page by page as they are needed. */
  listAlerts(
    request: Init<typeof v1.ListAlertsRequestSchema> = {},
    options?: CallOptions,
  ): AsyncIterable<v1.Alert> {
    return pages(
      v1.ListAlertsRequestSchema,
      request,
      (page) => this.#monitors.listAlerts(page, options),
      ({ alerts }) => alerts,
    );
  }

  /** Says whether a sample that is paused goes on or stops. */
  decideAlert(
    request: Init<typeof v1.DecideAlertRequestSchema>,
    options?: CallOptions,
  ): Promise<v1.DecideAlertResponse> {
    return this.#monitors.decideAlert(request, options);
  }

  /** Deletes alerts, all of the caller's tenant or some. */
  deleteAlerts(
    request: Init<typeof v1.DeleteAlertsRequestSchema> = {},
    options?: CallOptions,
  ): Promise<v1.DeleteAlertsResponse> {
    return this.#monitors.deleteAlerts(request, options);
  }
}

/** The request with an id, of its own if it has none: a copy. */
function identified<Desc extends DescMessage>(
  schema: Desc,
  request: MessageInitShape<Desc>,
): MessageShape<Desc> {
  // A copy, since `create` gives back what is a message already.
  const message = clone(schema, create(schema, request)) as MessageShape<Desc> & {
    requestId: string;
  };
  message.requestId ||= randomId();
  return message;
}

async function* pages<
  Desc extends DescMessage,
  Response extends { readonly nextPageToken: string },
  Item,
>(
  schema: Desc,
  request: MessageInitShape<Desc>,
  call: (page: MessageShape<Desc>) => Promise<Response>,
  items: (response: Response) => readonly Item[],
): AsyncGenerator<Item> {
  // A copy, since `create` gives back what is a message already.
  const page = clone(schema, create(schema, request)) as MessageShape<Desc> & { pageToken: string };
  for (;;) {
    const response = await call(page);
    yield* items(response);
    if (!response.nextPageToken) return;
    if (response.nextPageToken === page.pageToken) {
      throw badResponse("the server names the page that it sent as the next one");
    }
    page.pageToken = response.nextPageToken;
  }
}

function headersOf({ token, headers }: CallDefaults): Headers {
  const sent = checkedHeaders(headers);
  if (token === undefined) return sent;
  if (typeof token !== "string" || !/^[\x20-\x7e]+$/.test(token)) {
    throw invalid(
      "the token is not a text of printable ASCII characters; take away line breaks around it",
      "FIELD_INVALID",
      "token",
    );
  }
  sent.set("authorization", `Bearer ${token}`);
  return sent;
}

/** The resource name of a model. */
function modelName(model = ""): string {
  return !model || model.startsWith("models/") ? model : `models/${model}`;
}
