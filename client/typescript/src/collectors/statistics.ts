import type { LabelStatistics, Statistics } from "../collected.js";
import { badResponse } from "../errors.js";
import type {
  FetchActivationsRequest,
  FetchItem,
  LabelStatistics as Message,
} from "../gen/actserve/v1/generation_service_pb.js";
import {
  SecondMoments,
  type ReadoutPositions,
  type ReadoutStarted,
} from "../gen/actserve/v1/readout_pb.js";
import type { Tensor } from "../gen/actserve/v1/tensor_pb.js";
import { siteName } from "../sites.js";
import { decodeTensor, joined, size, type Float32Tensor } from "../tensors.js";
import { asked, shaped } from "./checked.js";
import { widthsOf } from "./readouts.js";

/** What has come of one label at one site. */
interface Partial {
  readonly rows: bigint;
  readonly mean: Float32Tensor;
  readonly blocks: Tensor[];
}

/** A readout that asks for statistics. */
interface Asked {
  readonly name: string;
  readonly full: boolean;
  /** Labels of the items that it reads. */
  readonly labels: ReadonlySet<string>;
  readonly sites: readonly { name: string; width: number; labels: Map<string, Partial> }[];
  /** Labels of items that were read, so that they have rows. */
  readonly expected: Set<string>;
}

/** Collects how the rows of labels are distributed. */
export class StatisticsCollector {
  readonly #readouts: ReadonlyMap<number, Asked>;

  constructor(request: FetchActivationsRequest, started: readonly ReadoutStarted[]) {
    const readouts = new Map<number, Asked>();
    for (const [index, { name, kind }] of request.readouts.entries()) {
      if (kind.case !== "rows" || !kind.value.statistics) continue;
      const widths = widthsOf(kind.value, asked(started, index, "readout"));
      readouts.set(index, {
        name,
        labels: new Set(request.items.filter((item) => reads(item, index)).flatMap(labelsOf)),
        full: kind.value.statistics.secondMoments === SecondMoments.FULL,
        sites: kind.value.sites.map((site, at) => ({
          name: siteName(site),
          width: widths[at] ?? 0,
          labels: new Map(),
        })),
        expected: new Set(),
      });
    }
    this.#readouts = readouts;
  }

  /** An item was read at these positions, and has not failed. */
  expect(item: FetchItem, told: readonly ReadoutPositions[]): void {
    for (const { readoutIndices, positions } of told) {
      if (positions.length === 0) continue;
      for (const index of readoutIndices) {
        for (const label of labelsOfAll(item)) this.#readouts.get(index)?.expected.add(label);
      }
    }
  }

  add(sent: Message): void {
    const { label, readoutIndex, siteIndex, rows, firstRow } = sent;
    const readout = this.#readouts.get(readoutIndex);
    if (!readout?.labels.has(label)) {
      throw badResponse(`the server sent statistics of ${JSON.stringify(label)} unasked`);
    }
    const site = asked(readout.sites, siteIndex, "statistics of site");
    const what = `of ${JSON.stringify(label)} at ${site.name}`;
    let partial = site.labels.get(label);
    if (!partial) {
      partial = {
        rows,
        mean: decodeTensor(shaped(sent.mean, [site.width], `the mean ${what}`)),
        blocks: [],
      };
      site.labels.set(label, partial);
    } else if (sent.mean || !readout.full) {
      throw badResponse(`the server sent the mean ${what} twice`);
    }
    const come = partial.blocks.reduce((sum, block) => sum + size(block.shape), 0);
    const height = sent.secondMoments?.shape[0] ?? 0;
    const shape = readout.full ? [height, site.width] : [site.width];
    const block = shaped(sent.secondMoments, shape, `the second moments ${what}`);
    if (rows === 0n || rows !== partial.rows || firstRow * site.width !== come) {
      throw badResponse(
        `the server sent ${rows} rows ${what} from row ${firstRow} of their moments on, which is ` +
          "not what comes next",
      );
    }
    partial.blocks.push(block);
  }

  finish(): Statistics {
    const statistics = new Map<string, ReadonlyMap<string, ReadonlyMap<string, LabelStatistics>>>();
    for (const { name, full, sites, expected } of this.#readouts.values()) {
      const bySite = new Map<string, ReadonlyMap<string, LabelStatistics>>();
      for (const site of sites) {
        const missing = [...expected].find((label) => !site.labels.has(label));
        if (missing !== undefined) {
          throw badResponse(
            `the server finished without the mean of ${JSON.stringify(missing)} at ${site.name}`,
          );
        }
        const shape = full ? [site.width, site.width] : [site.width];
        const byLabel = new Map<string, LabelStatistics>();
        for (const [label, { rows, mean, blocks }] of site.labels) {
          const data = joined(blocks);
          if (data.length !== size(shape)) {
            throw badResponse(
              `the server finished without all moments of ${JSON.stringify(label)} at ${site.name}`,
            );
          }
          byLabel.set(label, { rows, mean, secondMoments: { shape, data } });
        }
        bySite.set(site.name, byLabel);
      }
      statistics.set(name, bySite);
    }
    return statistics;
  }
}

function reads({ readoutIndices }: FetchItem, index: number): boolean {
  return readoutIndices.length === 0 || readoutIndices.includes(index);
}

function labelsOf(item: FetchItem): string[] {
  return [...item.positionLabels.map(({ label }) => label), ...labelsOfAll(item)];
}

/** The labels of every row of an item. An item without any label counts towards the empty one. */
function labelsOfAll({ label, positionLabels }: FetchItem): string[] {
  return label || positionLabels.length === 0 ? [label] : [];
}
