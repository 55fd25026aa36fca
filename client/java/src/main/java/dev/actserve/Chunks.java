package dev.actserve;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The chunks of one sequence by what they are of, and whether they are all that must be there. */
final class Chunks<K, C> {
  private final String what;
  private final Map<K, List<C>> chunks = new LinkedHashMap<>();
  private final Map<K, List<Integer>> positions = new LinkedHashMap<>();

  Chunks(String what, Collection<K> keys) {
    this.what = what;
    for (K key : keys) {
      chunks.put(key, new ArrayList<>());
      positions.put(key, new ArrayList<>());
    }
  }

  Set<K> keys() {
    return chunks.keySet();
  }

  /** Takes a chunk, which covers these positions. */
  void add(K key, List<Integer> covered, C chunk) {
    List<Integer> received = positions.get(key);
    if (received == null) {
      throw ActserveException.badResponse("the server sent %s of %s unasked", what, key);
    }
    received.addAll(covered);
    chunks.get(key).add(chunk);
  }

  /** The chunks of a key, if it has exactly the promised positions. */
  List<C> finish(K key, int[] promised) {
    int[] received = positions.get(key).stream().mapToInt(Integer::intValue).toArray();
    if (!Arrays.equals(promised, received)) {
      throw ActserveException.badResponse(
          "the server sent %s of %s at %s positions, not at the %s that it announced, each once and"
              + " ascending",
          what, key, received.length, promised.length);
    }
    return chunks.get(key);
  }
}
