import { Sample, type Generated } from "../collected.js";
import { badResponse, cutShort } from "../errors.js";
import type { Alert } from "../gen/actserve/v1/alert_pb.js";
import {
  ScoreDetail,
  type GenerateFinished,
  type GenerateRequest,
  type GenerateResponse,
  type GenerateStarted,
  type MonitorScore,
  type SampleFinished,
  type TokenChunk,
  type TokenLogprobs,
} from "../gen/actserve/v1/generation_service_pb.js";
import type { TokenizedPrompt } from "../gen/actserve/v1/prompt_pb.js";
import type { Collector } from "../stream.js";
import { checkReadouts, counted } from "./checked.js";
import { checkedScores } from "./scores.js";
import { SequenceCollector, tokenized } from "./sequence.js";

/** Collects the samples of a generation. */
export class GenerateCollector implements Collector<GenerateResponse, Generated> {
  readonly #request: GenerateRequest;
  readonly #open = new Map<number, SampleCollector>();
  readonly #samples = new Map<number, Sample>();
  #started: GenerateStarted | undefined;
  #finished: GenerateFinished | undefined;

  constructor(request: GenerateRequest) {
    checkReadouts(request.readouts);
    this.#request = request;
  }

  add({ event }: GenerateResponse): void {
    if (event.case === undefined) return; // An event of a newer server.
    if (this.#finished) throw badResponse("the server went on after it had finished");
    if (event.case === "started") {
      this.#start(event.value);
      return;
    }
    if (!this.#started) throw badResponse("the server did not begin with `started`");
    switch (event.case) {
      case "tokens":
        this.#opened(event.value.sampleIndex).addTokens(event.value);
        break;
      case "sampleFinished": {
        const { sampleIndex } = event.value;
        this.#samples.set(sampleIndex, this.#opened(sampleIndex).finish(event.value));
        this.#open.delete(sampleIndex);
        break;
      }
      case "alert":
        this.#opened(event.value.sampleIndex).alerts.push(event.value);
        break;
      case "finished":
        this.#finished = event.value;
        break;
      default:
        this.#opened(event.value.sequenceIndex).read.add(event);
    }
  }

  finish(): Generated {
    if (!this.#started || !this.#finished) throw cutShort();
    const [open] = this.#open.keys();
    if (open !== undefined) throw badResponse(`the server finished without the sample ${open}`);
    const [first, ...others] = [...this.#samples.values()].sort((a, b) => a.index - b.index);
    if (!first) throw badResponse("the server finished without any sample");
    return {
      callId: this.#started.callId,
      samples: [first, ...others],
      usage: this.#finished.usage,
    };
  }

  #start(started: GenerateStarted): void {
    if (this.#started) throw badResponse("the server started twice");
    const samples = this.#request.sampling?.samples ?? 1;
    for (let index = 0; index < samples; index++) {
      this.#open.set(index, new SampleCollector(index, this.#request, started));
    }
    this.#started = started;
  }

  #opened(index: number): SampleCollector {
    const sample = this.#open.get(index);
    if (!sample) throw badResponse(`the server sent what is of sample ${index}, which is not open`);
    return sample;
  }
}

class SampleCollector {
  readonly read: SequenceCollector;
  readonly alerts: Alert[] = [];
  readonly #index: number;
  readonly #request: GenerateRequest;
  readonly #prompt: TokenizedPrompt;
  readonly #ids: number[] = [];
  readonly #tokens: string[] = [];
  readonly #logprobs: TokenLogprobs[] = [];
  #text = "";

  constructor(index: number, request: GenerateRequest, started: GenerateStarted) {
    this.#index = index;
    this.#request = request;
    this.#prompt = tokenized(started.prompt);
    this.read = new SequenceCollector(index, request.readouts, started.readouts);
  }

  addTokens({ position, ids, texts, text, logprobs }: TokenChunk): void {
    const next = this.#prompt.ids.length + this.#ids.length;
    if (position !== next) {
      throw badResponse(`the server sent tokens of position ${position}, but ${next} comes next`);
    }
    counted(texts, ids.length, "texts of tokens");
    const asked = this.#request.sampling?.logprobs !== undefined;
    counted(logprobs, asked ? ids.length : 0, "log probabilities of tokens");
    append(this.#ids, ids);
    append(this.#tokens, texts);
    append(this.#logprobs, logprobs);
    this.#text += text;
  }

  finish(finished: SampleFinished): Sample {
    const prompt = this.#prompt;
    const tokenIds = [...prompt.ids, ...this.#ids];
    // The last token is never run through the model.
    const run = this.#ids.length ? tokenIds.length - 1 : tokenIds.length;
    const asked = this.#request.interventions.length;
    const readouts = this.read.finish(finished, finished.positions, run, asked);
    const tokens = [...prompt.texts, ...this.#tokens];
    const { interventions, reason, stoppedBy } = finished;
    return new Sample(
      this.#index,
      { prompt, tokenIds, tokens, readouts, interventions },
      {
        text: this.#text,
        finishReason: reason,
        stoppedBy,
        logprobs: this.#logprobs,
        alerts: this.alerts,
        monitorScores: this.#scored(finished.monitorScores),
        monitorInterventions: finished.monitorInterventions,
      },
    );
  }

  /** The scores, if they were asked for and are there of every monitor that the request names. */
  #scored(scores: readonly MonitorScore[]): readonly MonitorScore[] {
    const { monitors, scoreDetail } = this.#request;
    const isAsked = scoreDetail !== ScoreDetail.UNSPECIFIED;
    const scored = new Set(scores.map(({ monitor }) => monitor));
    if (scored.size < scores.length || (!isAsked && scores.length > 0)) {
      throw badResponse("the server sent scores of monitors twice or unasked");
    }
    const missing = isAsked && monitors.find((monitor) => !scored.has(monitor));
    if (missing) throw badResponse(`the server sent no score of ${missing}`);
    return checkedScores(scores, scoreDetail === ScoreDetail.TOKEN);
  }
}

/** As `push`, which takes only so many at once. */
function append<T>(list: T[], items: readonly T[]): void {
  for (const item of items) list.push(item);
}
