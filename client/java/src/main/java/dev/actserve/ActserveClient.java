package dev.actserve;

import com.google.protobuf.ByteString;
import dev.actserve.v1.Alert;
import dev.actserve.v1.AttributionGraph;
import dev.actserve.v1.AttributionGraphServiceGrpc;
import dev.actserve.v1.BeginUploadRequest;
import dev.actserve.v1.CombineSteeringVectorsRequest;
import dev.actserve.v1.CombineSteeringVectorsResponse;
import dev.actserve.v1.CompareActivationsRequest;
import dev.actserve.v1.CompareActivationsResponse;
import dev.actserve.v1.CreateAttributionGraphRequest;
import dev.actserve.v1.CreateAttributionGraphResponse;
import dev.actserve.v1.CreateMonitorRequest;
import dev.actserve.v1.CreateMonitorResponse;
import dev.actserve.v1.CreateSteeringVectorRequest;
import dev.actserve.v1.CreateSteeringVectorResponse;
import dev.actserve.v1.DecideAlertRequest;
import dev.actserve.v1.DecideAlertResponse;
import dev.actserve.v1.DeleteAlertsRequest;
import dev.actserve.v1.DeleteAlertsResponse;
import dev.actserve.v1.DeleteAttributionGraphRequest;
import dev.actserve.v1.DeleteAttributionGraphResponse;
import dev.actserve.v1.DeleteDictionaryRequest;
import dev.actserve.v1.DeleteDictionaryResponse;
import dev.actserve.v1.DeleteExplanationBaselineRequest;
import dev.actserve.v1.DeleteExplanationBaselineResponse;
import dev.actserve.v1.DeleteKeptActivationsRequest;
import dev.actserve.v1.DeleteKeptActivationsResponse;
import dev.actserve.v1.DeleteMonitorRequest;
import dev.actserve.v1.DeleteMonitorResponse;
import dev.actserve.v1.DeleteSteeringVectorRequest;
import dev.actserve.v1.DeleteSteeringVectorResponse;
import dev.actserve.v1.Dictionary;
import dev.actserve.v1.DictionaryServiceGrpc;
import dev.actserve.v1.ExplainActivationsRequest;
import dev.actserve.v1.ExplainActivationsResponse;
import dev.actserve.v1.ExplainTextRequest;
import dev.actserve.v1.ExplainTextResponse;
import dev.actserve.v1.ExplanationServiceGrpc;
import dev.actserve.v1.FeatureLabel;
import dev.actserve.v1.FetchActivationsRequest;
import dev.actserve.v1.FetchActivationsResponse;
import dev.actserve.v1.FitMonitorRequest;
import dev.actserve.v1.FitMonitorResponse;
import dev.actserve.v1.GenerateRequest;
import dev.actserve.v1.GenerateResponse;
import dev.actserve.v1.GenerationServiceGrpc;
import dev.actserve.v1.GetAlertRequest;
import dev.actserve.v1.GetAlertResponse;
import dev.actserve.v1.GetAttributionGraphRequest;
import dev.actserve.v1.GetAttributionGraphResponse;
import dev.actserve.v1.GetDictionaryRequest;
import dev.actserve.v1.GetDictionaryResponse;
import dev.actserve.v1.GetKeptActivationsRequest;
import dev.actserve.v1.GetKeptActivationsResponse;
import dev.actserve.v1.GetModelRequest;
import dev.actserve.v1.GetModelResponse;
import dev.actserve.v1.GetMonitorRequest;
import dev.actserve.v1.GetMonitorResponse;
import dev.actserve.v1.GetMonitorScoresRequest;
import dev.actserve.v1.GetMonitorScoresResponse;
import dev.actserve.v1.GetNlaRequest;
import dev.actserve.v1.GetNlaResponse;
import dev.actserve.v1.GetSteeringVectorRequest;
import dev.actserve.v1.GetSteeringVectorResponse;
import dev.actserve.v1.HeadServiceGrpc;
import dev.actserve.v1.KeptActivations;
import dev.actserve.v1.KeptActivationsServiceGrpc;
import dev.actserve.v1.ListAlertsRequest;
import dev.actserve.v1.ListAlertsResponse;
import dev.actserve.v1.ListAttributionGraphsRequest;
import dev.actserve.v1.ListAttributionGraphsResponse;
import dev.actserve.v1.ListDictionariesRequest;
import dev.actserve.v1.ListDictionariesResponse;
import dev.actserve.v1.ListFeatureLabelsRequest;
import dev.actserve.v1.ListFeatureLabelsResponse;
import dev.actserve.v1.ListKeptActivationsRequest;
import dev.actserve.v1.ListKeptActivationsResponse;
import dev.actserve.v1.ListModelsRequest;
import dev.actserve.v1.ListModelsResponse;
import dev.actserve.v1.ListMonitorsRequest;
import dev.actserve.v1.ListMonitorsResponse;
import dev.actserve.v1.ListNlasRequest;
import dev.actserve.v1.ListNlasResponse;
import dev.actserve.v1.ListSteeringVectorsRequest;
import dev.actserve.v1.ListSteeringVectorsResponse;
import dev.actserve.v1.MakeSteeringVectorRequest;
import dev.actserve.v1.MakeSteeringVectorResponse;
import dev.actserve.v1.MeasureHeadsRequest;
import dev.actserve.v1.MeasureHeadsResponse;
import dev.actserve.v1.Model;
import dev.actserve.v1.ModelServiceGrpc;
import dev.actserve.v1.Monitor;
import dev.actserve.v1.MonitorServiceGrpc;
import dev.actserve.v1.Nla;
import dev.actserve.v1.ReconstructActivationsRequest;
import dev.actserve.v1.ReconstructActivationsResponse;
import dev.actserve.v1.ReplayMonitorsRequest;
import dev.actserve.v1.ReplayMonitorsResponse;
import dev.actserve.v1.RunSweepRequest;
import dev.actserve.v1.RunSweepResponse;
import dev.actserve.v1.ScoreExplanationsRequest;
import dev.actserve.v1.ScoreExplanationsResponse;
import dev.actserve.v1.SetExplanationBaselineRequest;
import dev.actserve.v1.SetExplanationBaselineResponse;
import dev.actserve.v1.SetFeatureLabelsRequest;
import dev.actserve.v1.SetFeatureLabelsResponse;
import dev.actserve.v1.SteeringVector;
import dev.actserve.v1.SteeringVectorServiceGrpc;
import dev.actserve.v1.SweepServiceGrpc;
import dev.actserve.v1.Tensor;
import dev.actserve.v1.TokenizeRequest;
import dev.actserve.v1.TokenizeResponse;
import dev.actserve.v1.UpdateMonitorRequest;
import dev.actserve.v1.UpdateMonitorResponse;
import dev.actserve.v1.UpdateSteeringVectorRequest;
import dev.actserve.v1.UpdateSteeringVectorResponse;
import dev.actserve.v1.WatchAlertsRequest;
import dev.actserve.v1.WatchAttributionGraphRequest;
import dev.actserve.v1.WatchAttributionGraphResponse;
import dev.actserve.v1.Work;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;

/**
 * A client of one actserve server, or of several replicas of one.
 *
 * <p>Methods take the messages of the contract. Those that stream have three forms: {@code
 * generate} waits for the whole answer, {@code generateAsync} is its future, and {@code
 * streamGenerate} tells events as they come. A whole answer is whole or an error: nothing of it is
 * missing. To end a future, to close a stream or to interrupt a thread that waits cancels the call.
 *
 * <p>Calls that do no harm when they are made twice, as all of these are, are tried four times,
 * over about three seconds, while the server is unavailable, or as far apart as it says; {@link
 * #runSweep} and {@link #watchAlerts} also go on where their connection was lost.
 *
 * <p>Every method throws {@link ActserveException}, or its future ends with it. A client may be
 * used by many threads; one for the whole application is enough.
 */
public final class ActserveClient implements AutoCloseable {
  /** How often it is looked whether a monitor is fitted, or a graph made. */
  private static final Duration POLL = Duration.ofSeconds(1);

  private final Replicas replicas;
  private final Retries retries;
  private final Channel channel;
  private final Consumer<String> warn;

  private ActserveClient(
      Replicas replicas, Retries retries, Channel channel, Consumer<String> warn) {
    this.replicas = replicas;
    this.retries = retries;
    this.channel = channel;
    this.warn = warn;
  }

  static ActserveClient of(
      Replicas replicas, Consumer<String> warn, List<ClientInterceptor> settings) {
    Retries retries = new Retries();
    // The last one is asked first.
    Channel channel = ClientInterceptors.intercept(replicas, new VersionCheck(warn), retries);
    Channel set = ClientInterceptors.intercept(channel, settings);
    return new ActserveClient(replicas, retries, set, warn);
  }

  /**
   * A client without any more settings, which speaks plaintext.
   *
   * @param target such as {@code localhost:50051}
   */
  public static ActserveClient connect(String target) {
    return builder(target).build();
  }

  /**
   * Settings of a client.
   *
   * @param target such as {@code localhost:50051}
   * @param replicas more servers that do the same: calls go to all of them in turn, and one that
   *     cannot be reached is passed over
   */
  public static ActserveClientBuilder builder(String target, String... replicas) {
    List<String> targets = new ArrayList<>(List.of(target));
    targets.addAll(List.of(replicas));
    return new ActserveClientBuilder(targets);
  }

  /**
   * The channel, for stubs of the contract such as {@code WeightServiceGrpc.newBlockingStub}. Their
   * calls have the headers, the deadline and the attempts of this client; {@link
   * ActserveException#from} makes an error of what they throw.
   */
  public Channel channel() {
    return channel;
  }

  /**
   * This client with another timeout, such as for one call. Both have the same connections: it
   * costs nothing, and to close one closes the other.
   *
   * @param timeout how long a call may take, with all its attempts
   * @throws ActserveException {@code FIELD_INVALID} unless it is above zero
   */
  public ActserveClient withTimeout(Duration timeout) {
    Channel other = ClientInterceptors.intercept(channel, new Timeout(timeout));
    return new ActserveClient(replicas, retries, other, warn);
  }

  /** Cancels what is running, and disconnects. */
  @Override
  public void close() {
    // In this order, so that nothing is tried again.
    retries.close();
    replicas.close();
  }

  /** All served models. */
  public Iterable<Model> listModels() {
    return listModels(ListModelsRequest.getDefaultInstance());
  }

  /** The served models, page by page. */
  public Iterable<Model> listModels(ListModelsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    ModelServiceGrpc.getListModelsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListModelsResponse::getModelsList,
        ListModelsResponse::getNextPageToken);
  }

  /** One model. */
  public GetModelResponse getModel(GetModelRequest request) {
    return Calls.await(getModelAsync(request));
  }

  /** One model. */
  public CompletableFuture<GetModelResponse> getModelAsync(GetModelRequest request) {
    return Calls.unary(channel, ModelServiceGrpc.getGetModelMethod(), request);
  }

  /** A prompt as the model would see it. */
  public TokenizeResponse tokenize(TokenizeRequest request) {
    return Calls.await(tokenizeAsync(request));
  }

  /** A prompt as the model would see it. */
  public CompletableFuture<TokenizeResponse> tokenizeAsync(TokenizeRequest request) {
    return Calls.unary(channel, ModelServiceGrpc.getTokenizeMethod(), request);
  }

  /** Reads what is asked of each item; an item that failed has its error in its place. */
  public FetchResult fetchActivations(FetchActivationsRequest request) {
    return Calls.await(fetchActivationsAsync(request));
  }

  /** Reads what is asked of each item; an item that failed has its error in its place. */
  public CompletableFuture<FetchResult> fetchActivationsAsync(FetchActivationsRequest request) {
    return Calls.collect(
        channel,
        GenerationServiceGrpc.getFetchActivationsMethod(),
        request,
        new FetchCollector(request));
  }

  /** The events of reading, as they come. */
  public ResponseStream<FetchActivationsResponse> streamFetchActivations(
      FetchActivationsRequest request) {
    return ResponseStream.open(
        channel,
        GenerationServiceGrpc.getFetchActivationsMethod(),
        request,
        FetchActivationsResponse::hasFinished);
  }

  /** Continues a prompt. */
  public GenerateResult generate(GenerateRequest request) {
    return Calls.await(generateAsync(request));
  }

  /** Continues a prompt. */
  public CompletableFuture<GenerateResult> generateAsync(GenerateRequest request) {
    return Calls.collect(
        channel,
        GenerationServiceGrpc.getGenerateMethod(),
        request,
        new GenerateCollector(request));
  }

  /** The events of writing, as they come. */
  public ResponseStream<GenerateResponse> streamGenerate(GenerateRequest request) {
    return ResponseStream.open(
        channel, GenerationServiceGrpc.getGenerateMethod(), request, GenerateResponse::hasFinished);
  }

  /** What is kept under a name. */
  public GetKeptActivationsResponse getKeptActivations(GetKeptActivationsRequest request) {
    return Calls.await(getKeptActivationsAsync(request));
  }

  /** What is kept under a name. */
  public CompletableFuture<GetKeptActivationsResponse> getKeptActivationsAsync(
      GetKeptActivationsRequest request) {
    return Calls.unary(channel, KeptActivationsServiceGrpc.getGetKeptActivationsMethod(), request);
  }

  /** All that the caller's tenant keeps on the server. */
  public Iterable<KeptActivations> listKeptActivations() {
    return listKeptActivations(ListKeptActivationsRequest.getDefaultInstance());
  }

  /** What the caller's tenant keeps on the server, page by page. */
  public Iterable<KeptActivations> listKeptActivations(ListKeptActivationsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    KeptActivationsServiceGrpc.getListKeptActivationsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListKeptActivationsResponse::getKeptActivationsList,
        ListKeptActivationsResponse::getNextPageToken);
  }

  /** Frees what is kept under a name. */
  public DeleteKeptActivationsResponse deleteKeptActivations(DeleteKeptActivationsRequest request) {
    return Calls.await(deleteKeptActivationsAsync(request));
  }

  /** Frees what is kept under a name. */
  public CompletableFuture<DeleteKeptActivationsResponse> deleteKeptActivationsAsync(
      DeleteKeptActivationsRequest request) {
    return Calls.unary(
        channel, KeptActivationsServiceGrpc.getDeleteKeptActivationsMethod(), request);
  }

  /** All natural language autoencoders that are loaded. */
  public Iterable<Nla> listNlas() {
    return listNlas(ListNlasRequest.getDefaultInstance());
  }

  /** The natural language autoencoders that are loaded, page by page. */
  public Iterable<Nla> listNlas(ListNlasRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    ExplanationServiceGrpc.getListNlasMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListNlasResponse::getNlasList,
        ListNlasResponse::getNextPageToken);
  }

  /** One natural language autoencoder. */
  public GetNlaResponse getNla(GetNlaRequest request) {
    return Calls.await(getNlaAsync(request));
  }

  /** One natural language autoencoder. */
  public CompletableFuture<GetNlaResponse> getNlaAsync(GetNlaRequest request) {
    return Calls.unary(channel, ExplanationServiceGrpc.getGetNlaMethod(), request);
  }

  /** Explains rows. */
  public ExplainResult explainActivations(ExplainActivationsRequest request) {
    return Calls.await(explainActivationsAsync(request));
  }

  /** Explains rows. */
  public CompletableFuture<ExplainResult> explainActivationsAsync(
      ExplainActivationsRequest request) {
    return Calls.collect(
        channel,
        ExplanationServiceGrpc.getExplainActivationsMethod(),
        request,
        new ExplainCollector<>(
            ExplainActivationsResponse::getEvent,
            request.getSpec(),
            rows(request.getActivations()),
            0));
  }

  /** The events of explaining, as they come. */
  public ResponseStream<ExplainActivationsResponse> streamExplainActivations(
      ExplainActivationsRequest request) {
    return ResponseStream.open(
        channel,
        ExplanationServiceGrpc.getExplainActivationsMethod(),
        request,
        response -> response.getEvent().hasFinished());
  }

  /** Explains what a model thinks at the tokens of a prompt. */
  public ExplainResult explainText(ExplainTextRequest request) {
    return Calls.await(explainTextAsync(request));
  }

  /** Explains what a model thinks at the tokens of a prompt. */
  public CompletableFuture<ExplainResult> explainTextAsync(ExplainTextRequest request) {
    return Calls.collect(
        channel,
        ExplanationServiceGrpc.getExplainTextMethod(),
        request,
        new ExplainCollector<>(
            ExplainTextResponse::getEvent, request.getSpec(), -1, request.getInterventionsCount()));
  }

  /** The events of explaining, as they come. */
  public ResponseStream<ExplainTextResponse> streamExplainText(ExplainTextRequest request) {
    return ResponseStream.open(
        channel,
        ExplanationServiceGrpc.getExplainTextMethod(),
        request,
        response -> response.getEvent().hasFinished());
  }

  /** Explains how rows differ. */
  public ExplainResult compareActivations(CompareActivationsRequest request) {
    return Calls.await(compareActivationsAsync(request));
  }

  /** Explains how rows differ. */
  public CompletableFuture<ExplainResult> compareActivationsAsync(
      CompareActivationsRequest request) {
    return Calls.collect(
        channel,
        ExplanationServiceGrpc.getCompareActivationsMethod(),
        request,
        new ExplainCollector<>(
            CompareActivationsResponse::getEvent,
            request.getSpec(),
            rows(request.getActivations()),
            0));
  }

  /** The events of explaining, as they come. */
  public ResponseStream<CompareActivationsResponse> streamCompareActivations(
      CompareActivationsRequest request) {
    return ResponseStream.open(
        channel,
        ExplanationServiceGrpc.getCompareActivationsMethod(),
        request,
        response -> response.getEvent().hasFinished());
  }

  /** Makes rows of explanations. */
  public ReconstructResult reconstructActivations(ReconstructActivationsRequest request) {
    return Calls.await(reconstructActivationsAsync(request));
  }

  /** Makes rows of explanations. */
  public CompletableFuture<ReconstructResult> reconstructActivationsAsync(
      ReconstructActivationsRequest request) {
    return Calls.collect(
        channel,
        ExplanationServiceGrpc.getReconstructActivationsMethod(),
        request,
        new ReconstructCollector(request));
  }

  /** The events of reconstructing, as they come. */
  public ResponseStream<ReconstructActivationsResponse> streamReconstructActivations(
      ReconstructActivationsRequest request) {
    return ResponseStream.open(
        channel,
        ExplanationServiceGrpc.getReconstructActivationsMethod(),
        request,
        ReconstructActivationsResponse::hasFinished);
  }

  /** How well texts account for rows. */
  public ScoreExplanationsResponse scoreExplanations(ScoreExplanationsRequest request) {
    return Calls.await(scoreExplanationsAsync(request));
  }

  /** How well texts account for rows. */
  public CompletableFuture<ScoreExplanationsResponse> scoreExplanationsAsync(
      ScoreExplanationsRequest request) {
    int texts = request.getTextsCount();
    return Calls.collect(
        channel,
        ExplanationServiceGrpc.getScoreExplanationsMethod(),
        request,
        new Calls.Only<>(
            response -> {
              if (response.getScoresCount() != texts) {
                throw ActserveException.badResponse(
                    "the server sent %s scores for %s texts", response.getScoresCount(), texts);
              }
            }));
  }

  /** Measures from rows what scores are relative to. */
  public SetExplanationBaselineResponse setExplanationBaseline(
      SetExplanationBaselineRequest request) {
    return Calls.await(setExplanationBaselineAsync(request));
  }

  /** Measures from rows what scores are relative to. */
  public CompletableFuture<SetExplanationBaselineResponse> setExplanationBaselineAsync(
      SetExplanationBaselineRequest request) {
    return Calls.unary(channel, ExplanationServiceGrpc.getSetExplanationBaselineMethod(), request);
  }

  /** Forgets a baseline. */
  public DeleteExplanationBaselineResponse deleteExplanationBaseline(
      DeleteExplanationBaselineRequest request) {
    return Calls.await(deleteExplanationBaselineAsync(request));
  }

  /** Forgets a baseline. */
  public CompletableFuture<DeleteExplanationBaselineResponse> deleteExplanationBaselineAsync(
      DeleteExplanationBaselineRequest request) {
    return Calls.unary(
        channel, ExplanationServiceGrpc.getDeleteExplanationBaselineMethod(), request);
  }

  /**
   * Stores a vector. Without a {@code request_id} the call has one of its own, by which it makes
   * nothing twice when it is made again.
   */
  public CreateSteeringVectorResponse createSteeringVector(CreateSteeringVectorRequest request) {
    return Calls.await(createSteeringVectorAsync(request));
  }

  /** Stores a vector, as {@link #createSteeringVector} does. */
  public CompletableFuture<CreateSteeringVectorResponse> createSteeringVectorAsync(
      CreateSteeringVectorRequest request) {
    return Calls.unary(
        channel,
        SteeringVectorServiceGrpc.getCreateSteeringVectorMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /**
   * Makes a vector of examples of two kinds, and stores it. Its {@code request_id} is as that of
   * {@link #createSteeringVector}.
   */
  public MakeSteeringVectorResponse makeSteeringVector(MakeSteeringVectorRequest request) {
    return Calls.await(makeSteeringVectorAsync(request));
  }

  /** Makes a vector, as {@link #makeSteeringVector} does. */
  public CompletableFuture<MakeSteeringVectorResponse> makeSteeringVectorAsync(
      MakeSteeringVectorRequest request) {
    return Calls.unary(
        channel,
        SteeringVectorServiceGrpc.getMakeSteeringVectorMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /**
   * Computes a vector from stored ones, and stores it. Its {@code request_id} is as that of {@link
   * #createSteeringVector}.
   */
  public CombineSteeringVectorsResponse combineSteeringVectors(
      CombineSteeringVectorsRequest request) {
    return Calls.await(combineSteeringVectorsAsync(request));
  }

  /** Computes a vector, as {@link #combineSteeringVectors} does. */
  public CompletableFuture<CombineSteeringVectorsResponse> combineSteeringVectorsAsync(
      CombineSteeringVectorsRequest request) {
    return Calls.unary(
        channel,
        SteeringVectorServiceGrpc.getCombineSteeringVectorsMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /** One vector; {@link Tensors#decode} reads its elements, if they were asked for. */
  public GetSteeringVectorResponse getSteeringVector(GetSteeringVectorRequest request) {
    return Calls.await(getSteeringVectorAsync(request));
  }

  /** One vector; {@link Tensors#decode} reads its elements, if they were asked for. */
  public CompletableFuture<GetSteeringVectorResponse> getSteeringVectorAsync(
      GetSteeringVectorRequest request) {
    return Calls.unary(channel, SteeringVectorServiceGrpc.getGetSteeringVectorMethod(), request);
  }

  /** All stored vectors. */
  public Iterable<SteeringVector> listSteeringVectors() {
    return listSteeringVectors(ListSteeringVectorsRequest.getDefaultInstance());
  }

  /** The stored vectors that have some labels, page by page. */
  public Iterable<SteeringVector> listSteeringVectors(ListSteeringVectorsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    SteeringVectorServiceGrpc.getListSteeringVectorsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListSteeringVectorsResponse::getSteeringVectorsList,
        ListSteeringVectorsResponse::getNextPageToken);
  }

  /** Replaces the labels of a vector. */
  public UpdateSteeringVectorResponse updateSteeringVector(UpdateSteeringVectorRequest request) {
    return Calls.await(updateSteeringVectorAsync(request));
  }

  /** Replaces the labels of a vector. */
  public CompletableFuture<UpdateSteeringVectorResponse> updateSteeringVectorAsync(
      UpdateSteeringVectorRequest request) {
    return Calls.unary(channel, SteeringVectorServiceGrpc.getUpdateSteeringVectorMethod(), request);
  }

  /** Deletes a vector. Runs that use it keep it. */
  public DeleteSteeringVectorResponse deleteSteeringVector(DeleteSteeringVectorRequest request) {
    return Calls.await(deleteSteeringVectorAsync(request));
  }

  /** Deletes a vector. Runs that use it keep it. */
  public CompletableFuture<DeleteSteeringVectorResponse> deleteSteeringVectorAsync(
      DeleteSteeringVectorRequest request) {
    return Calls.unary(channel, SteeringVectorServiceGrpc.getDeleteSteeringVectorMethod(), request);
  }

  /** All dictionaries that the server has. */
  public Iterable<Dictionary> listDictionaries() {
    return listDictionaries(ListDictionariesRequest.getDefaultInstance());
  }

  /** The dictionaries that the server has, page by page. */
  public Iterable<Dictionary> listDictionaries(ListDictionariesRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    DictionaryServiceGrpc.getListDictionariesMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListDictionariesResponse::getDictionariesList,
        ListDictionariesResponse::getNextPageToken);
  }

  /** One dictionary, without its matrices. */
  public GetDictionaryResponse getDictionary(GetDictionaryRequest request) {
    return Calls.await(getDictionaryAsync(request));
  }

  /** One dictionary, without its matrices. */
  public CompletableFuture<GetDictionaryResponse> getDictionaryAsync(GetDictionaryRequest request) {
    return Calls.unary(channel, DictionaryServiceGrpc.getGetDictionaryMethod(), request);
  }

  /**
   * Stores a dictionary, chunk by chunk. Without a {@code request_id} the upload has one that
   * follows from what is uploaded: the same call, made again after it was cut, goes on where it
   * was, in another program too. The timeout holds for each of the calls that it takes.
   *
   * @param contents the bytes of each of the request's matrices
   */
  public Dictionary uploadDictionary(BeginUploadRequest request, List<ByteString> contents) {
    return Upload.run(channel, request, contents);
  }

  /** Deletes a dictionary and its labels. Runs that use it keep it. */
  public DeleteDictionaryResponse deleteDictionary(DeleteDictionaryRequest request) {
    return Calls.await(deleteDictionaryAsync(request));
  }

  /** Deletes a dictionary and its labels. Runs that use it keep it. */
  public CompletableFuture<DeleteDictionaryResponse> deleteDictionaryAsync(
      DeleteDictionaryRequest request) {
    return Calls.unary(channel, DictionaryServiceGrpc.getDeleteDictionaryMethod(), request);
  }

  /** Says what features of a dictionary stand for. */
  public SetFeatureLabelsResponse setFeatureLabels(SetFeatureLabelsRequest request) {
    return Calls.await(setFeatureLabelsAsync(request));
  }

  /** Says what features of a dictionary stand for. */
  public CompletableFuture<SetFeatureLabelsResponse> setFeatureLabelsAsync(
      SetFeatureLabelsRequest request) {
    return Calls.unary(channel, DictionaryServiceGrpc.getSetFeatureLabelsMethod(), request);
  }

  /** What features of a dictionary stand for, by index, page by page. */
  public Iterable<FeatureLabel> listFeatureLabels(ListFeatureLabelsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    DictionaryServiceGrpc.getListFeatureLabelsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListFeatureLabelsResponse::getLabelsList,
        ListFeatureLabelsResponse::getNextPageToken);
  }

  /**
   * The tokens that each of some features raises most, and those that it lowers most.
   *
   * @param dictionary one that writes to the residual stream, such as {@code
   *     models/smollm2-135m/dictionaries/smollm2-135m}
   * @param features as many as a call has items, less one
   * @param k how many tokens of each kind
   */
  public List<LogitEffect> logitEffects(String dictionary, int[] features, int k) {
    return LogitEffects.find(this, dictionary, features, k);
  }

  /** Measures every attention head of some layers over a corpus, in one call. */
  public HeadsResult measureHeads(MeasureHeadsRequest request) {
    return Calls.await(measureHeadsAsync(request));
  }

  /** Measures every attention head of some layers over a corpus, in one call. */
  public CompletableFuture<HeadsResult> measureHeadsAsync(MeasureHeadsRequest request) {
    return Calls.collect(
        channel, HeadServiceGrpc.getMeasureHeadsMethod(), request, new HeadsCollector(request));
  }

  /** What is measured of heads, as it comes. */
  public ResponseStream<MeasureHeadsResponse> streamMeasureHeads(MeasureHeadsRequest request) {
    return ResponseStream.open(
        channel,
        HeadServiceGrpc.getMeasureHeadsMethod(),
        request,
        MeasureHeadsResponse::hasFinished);
  }

  /**
   * Begins a graph of what the next token of a prompt comes from; {@link #waitForAttributionGraph}
   * waits for it. Its {@code request_id} is as that of {@link #createSteeringVector}.
   */
  public CreateAttributionGraphResponse createAttributionGraph(
      CreateAttributionGraphRequest request) {
    return Calls.await(createAttributionGraphAsync(request));
  }

  /** As {@link #createAttributionGraph}. */
  public CompletableFuture<CreateAttributionGraphResponse> createAttributionGraphAsync(
      CreateAttributionGraphRequest request) {
    return Calls.unary(
        channel,
        AttributionGraphServiceGrpc.getCreateAttributionGraphMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /** What a graph is of and how far it has come, without nodes and edges. */
  public GetAttributionGraphResponse getAttributionGraph(GetAttributionGraphRequest request) {
    return Calls.await(getAttributionGraphAsync(request));
  }

  /** What a graph is of and how far it has come, without nodes and edges. */
  public CompletableFuture<GetAttributionGraphResponse> getAttributionGraphAsync(
      GetAttributionGraphRequest request) {
    return Calls.unary(
        channel, AttributionGraphServiceGrpc.getGetAttributionGraphMethod(), request);
  }

  /** All graphs, without nodes and edges. */
  public Iterable<AttributionGraph> listAttributionGraphs() {
    return listAttributionGraphs(ListAttributionGraphsRequest.getDefaultInstance());
  }

  /** The graphs of a model, without nodes and edges, page by page. */
  public Iterable<AttributionGraph> listAttributionGraphs(ListAttributionGraphsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    AttributionGraphServiceGrpc.getListAttributionGraphsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListAttributionGraphsResponse::getAttributionGraphsList,
        ListAttributionGraphsResponse::getNextPageToken);
  }

  /** Deletes a graph, and ends the work on it. */
  public DeleteAttributionGraphResponse deleteAttributionGraph(
      DeleteAttributionGraphRequest request) {
    return Calls.await(deleteAttributionGraphAsync(request));
  }

  /** Deletes a graph, and ends the work on it. */
  public CompletableFuture<DeleteAttributionGraphResponse> deleteAttributionGraphAsync(
      DeleteAttributionGraphRequest request) {
    return Calls.unary(
        channel, AttributionGraphServiceGrpc.getDeleteAttributionGraphMethod(), request);
  }

  /**
   * A graph, once it is made. It waits for as long as that takes, also over connections that are
   * lost, or until the thread is interrupted.
   *
   * @param name such as {@code models/smollm2-135m/attributionGraphs/capital}
   * @throws ActserveException why it could not be made
   */
  public GraphResult waitForAttributionGraph(String name) {
    GetAttributionGraphRequest request =
        GetAttributionGraphRequest.newBuilder().setName(name).build();
    while (true) {
      Work work = getAttributionGraph(request).getAttributionGraph().getWork();
      switch (work.getState()) {
        case WORK_STATE_WAITING, WORK_STATE_RUNNING -> pause();
        case WORK_STATE_FAILED -> throw ActserveException.of(work);
        default -> {
          return watchAttributionGraph(
              WatchAttributionGraphRequest.newBuilder().setName(name).build());
        }
      }
    }
  }

  /** A graph, once it is made; over one connection. */
  public GraphResult watchAttributionGraph(WatchAttributionGraphRequest request) {
    return Calls.await(watchAttributionGraphAsync(request));
  }

  /** A graph, once it is made; over one connection. */
  public CompletableFuture<GraphResult> watchAttributionGraphAsync(
      WatchAttributionGraphRequest request) {
    return Calls.collect(
        channel,
        AttributionGraphServiceGrpc.getWatchAttributionGraphMethod(),
        request,
        new GraphCollector());
  }

  /** How far a graph has come, and then its nodes and edges, as they come. */
  public ResponseStream<WatchAttributionGraphResponse> streamWatchAttributionGraph(
      WatchAttributionGraphRequest request) {
    return ResponseStream.open(
        channel,
        AttributionGraphServiceGrpc.getWatchAttributionGraphMethod(),
        request,
        WatchAttributionGraphResponse::hasFinished);
  }

  /** Waits between two looks. */
  private static void pause() {
    try {
      Thread.sleep(POLL.toMillis());
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw ActserveException.cancelled(interrupted);
    }
  }

  /**
   * Runs many prompts under many interventions; a cell that failed has its error in its place.
   *
   * <p>Where the connection is lost, the sweep goes on after the last cell that came. A large one
   * takes long: give it a client {@link #withTimeout} that fits, which holds for all of it. Cells
   * that were served are stored for a while, so that an equal sweep later on is answered with them.
   */
  public SweepResult runSweep(RunSweepRequest request) {
    return Calls.await(runSweepAsync(request));
  }

  /** Runs many prompts under many interventions, as {@link #runSweep} does. */
  public CompletableFuture<SweepResult> runSweepAsync(RunSweepRequest request) {
    SweepCollector collector = new SweepCollector(request);
    return Calls.collect(
        channel,
        SweepServiceGrpc.getRunSweepMethod(),
        request,
        collector,
        CallOptions.DEFAULT.withOption(Retries.RESUMABLE, collector));
  }

  /**
   * The cells of a sweep, as they are done. Who reads them goes on alone where the connection is
   * lost: a request with the {@code resume_token} of the last cell that came has the others.
   */
  public ResponseStream<RunSweepResponse> streamRunSweep(RunSweepRequest request) {
    return ResponseStream.open(
        channel, SweepServiceGrpc.getRunSweepMethod(), request, RunSweepResponse::hasFinished);
  }

  /** Stores a monitor. Its {@code request_id} is as that of {@link #createSteeringVector}. */
  public CreateMonitorResponse createMonitor(CreateMonitorRequest request) {
    return Calls.await(createMonitorAsync(request));
  }

  /** As {@link #createMonitor}. */
  public CompletableFuture<CreateMonitorResponse> createMonitorAsync(CreateMonitorRequest request) {
    return Calls.unary(
        channel,
        MonitorServiceGrpc.getCreateMonitorMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /** One monitor. */
  public GetMonitorResponse getMonitor(GetMonitorRequest request) {
    return Calls.await(getMonitorAsync(request));
  }

  /** As {@link #getMonitor}. */
  public CompletableFuture<GetMonitorResponse> getMonitorAsync(GetMonitorRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getGetMonitorMethod(), request);
  }

  /** All monitors. */
  public Iterable<Monitor> listMonitors() {
    return listMonitors(ListMonitorsRequest.getDefaultInstance());
  }

  /** The monitors of a model, page by page. */
  public Iterable<Monitor> listMonitors(ListMonitorsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    MonitorServiceGrpc.getListMonitorsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListMonitorsResponse::getMonitorsList,
        ListMonitorsResponse::getNextPageToken);
  }

  /** Replaces a monitor, or those of its fields that the mask names. */
  public UpdateMonitorResponse updateMonitor(UpdateMonitorRequest request) {
    return Calls.await(updateMonitorAsync(request));
  }

  /** As {@link #updateMonitor}. */
  public CompletableFuture<UpdateMonitorResponse> updateMonitorAsync(UpdateMonitorRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getUpdateMonitorMethod(), request);
  }

  /** Deletes a monitor. Its alerts stay. */
  public DeleteMonitorResponse deleteMonitor(DeleteMonitorRequest request) {
    return Calls.await(deleteMonitorAsync(request));
  }

  /** As {@link #deleteMonitor}. */
  public CompletableFuture<DeleteMonitorResponse> deleteMonitorAsync(DeleteMonitorRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getDeleteMonitorMethod(), request);
  }

  /**
   * Begins to make a monitor of labelled examples; {@link #waitForMonitor} waits for it. Its {@code
   * request_id} is as that of {@link #createSteeringVector}.
   */
  public FitMonitorResponse fitMonitor(FitMonitorRequest request) {
    return Calls.await(fitMonitorAsync(request));
  }

  /** As {@link #fitMonitor}. */
  public CompletableFuture<FitMonitorResponse> fitMonitorAsync(FitMonitorRequest request) {
    return Calls.unary(
        channel,
        MonitorServiceGrpc.getFitMonitorMethod(),
        request.getRequestId().isEmpty()
            ? request.toBuilder().setRequestId(newId()).build()
            : request);
  }

  /**
   * A monitor, once {@link #fitMonitor} has made it. It waits for as long as that takes, or until
   * the thread is interrupted. The monitor is paused until it is updated.
   *
   * @param name such as {@code models/smollm2-135m/monitors/lies}
   * @throws ActserveException why it could not be fitted
   */
  public Monitor waitForMonitor(String name) {
    GetMonitorRequest request = GetMonitorRequest.newBuilder().setName(name).build();
    while (true) {
      Monitor monitor = getMonitor(request).getMonitor();
      Work work = monitor.getFit().getWork();
      switch (work.getState()) {
        case WORK_STATE_WAITING, WORK_STATE_RUNNING -> pause();
        case WORK_STATE_FAILED -> throw ActserveException.of(work);
        default -> {
          return monitor;
        }
      }
    }
  }

  /** How the scores of a monitor are distributed, and how far they have drifted. */
  public GetMonitorScoresResponse getMonitorScores(GetMonitorScoresRequest request) {
    return Calls.await(getMonitorScoresAsync(request));
  }

  /** As {@link #getMonitorScores}. */
  public CompletableFuture<GetMonitorScoresResponse> getMonitorScoresAsync(
      GetMonitorScoresRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getGetMonitorScoresMethod(), request);
  }

  /** Scores items by monitors, without acting and without alerts. */
  public ReplayResult replayMonitors(ReplayMonitorsRequest request) {
    return Calls.await(replayMonitorsAsync(request));
  }

  /** Scores items by monitors, without acting and without alerts. */
  public CompletableFuture<ReplayResult> replayMonitorsAsync(ReplayMonitorsRequest request) {
    return Calls.collect(
        channel,
        MonitorServiceGrpc.getReplayMonitorsMethod(),
        request,
        new ReplayCollector(request));
  }

  /** The scores of items, as they are done. */
  public ResponseStream<ReplayMonitorsResponse> streamReplayMonitors(
      ReplayMonitorsRequest request) {
    return ResponseStream.open(
        channel,
        MonitorServiceGrpc.getReplayMonitorsMethod(),
        request,
        ReplayMonitorsResponse::hasFinished);
  }

  /**
   * The alerts of all calls of the caller's tenant, as they are raised, over connections that are
   * lost, for as long as it takes. The timeout of the client does not hold for it.
   */
  public AlertStream watchAlerts(WatchAlertsRequest request) {
    return new AlertStream(channel, replicas::connectNow, warn, request);
  }

  /** One alert as it is now. */
  public GetAlertResponse getAlert(GetAlertRequest request) {
    return Calls.await(getAlertAsync(request));
  }

  /** As {@link #getAlert}. */
  public CompletableFuture<GetAlertResponse> getAlertAsync(GetAlertRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getGetAlertMethod(), request);
  }

  /** All alerts of the caller's tenant, the newest first. */
  public Iterable<Alert> listAlerts() {
    return listAlerts(ListAlertsRequest.getDefaultInstance());
  }

  /** Alerts, the newest first, page by page. */
  public Iterable<Alert> listAlerts(ListAlertsRequest request) {
    return new Pages<>(
        request.getPageToken(),
        token ->
            Calls.await(
                Calls.unary(
                    channel,
                    MonitorServiceGrpc.getListAlertsMethod(),
                    request.toBuilder().setPageToken(token).build())),
        ListAlertsResponse::getAlertsList,
        ListAlertsResponse::getNextPageToken);
  }

  /** Says whether a sample that is paused goes on or stops. */
  public DecideAlertResponse decideAlert(DecideAlertRequest request) {
    return Calls.await(decideAlertAsync(request));
  }

  /** As {@link #decideAlert}. */
  public CompletableFuture<DecideAlertResponse> decideAlertAsync(DecideAlertRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getDecideAlertMethod(), request);
  }

  /** Deletes alerts, all of the caller's tenant or some. */
  public DeleteAlertsResponse deleteAlerts(DeleteAlertsRequest request) {
    return Calls.await(deleteAlertsAsync(request));
  }

  /** As {@link #deleteAlerts}. */
  public CompletableFuture<DeleteAlertsResponse> deleteAlertsAsync(DeleteAlertsRequest request) {
    return Calls.unary(channel, MonitorServiceGrpc.getDeleteAlertsMethod(), request);
  }

  private static String newId() {
    return UUID.randomUUID().toString();
  }

  private static long rows(Tensor activations) {
    return activations.getShapeCount() == 0 ? 0 : Integer.toUnsignedLong(activations.getShape(0));
  }
}
