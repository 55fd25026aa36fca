package dev.actserve;

import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.function.Function;

/**
 * What the pages of a list have together. A page is asked for when it is needed.
 *
 * @param <P> a page
 * @param <T> an element
 */
final class Pages<P, T> implements Iterable<T> {
  private final String firstToken;
  private final Function<String, P> page;
  private final Function<P, List<T>> elements;
  private final Function<P, String> nextToken;

  Pages(
      String firstToken,
      Function<String, P> page,
      Function<P, List<T>> elements,
      Function<P, String> nextToken) {
    this.firstToken = firstToken;
    this.page = page;
    this.elements = elements;
    this.nextToken = nextToken;
  }

  @Override
  public Iterator<T> iterator() {
    return new Iterator<>() {
      private Iterator<T> current = List.<T>of().iterator();
      private String token = firstToken;
      private boolean wasLast;

      @Override
      public boolean hasNext() {
        while (!current.hasNext() && !wasLast) {
          P read = page.apply(token);
          String next = nextToken.apply(read);
          wasLast = next.isEmpty();
          if (!wasLast && next.equals(token)) {
            throw ActserveException.badResponse("the server names a page as the one after itself");
          }
          token = next;
          current = elements.apply(read).iterator();
        }
        return current.hasNext();
      }

      @Override
      public T next() {
        if (!hasNext()) {
          throw new NoSuchElementException("the list is at its end");
        }
        return current.next();
      }
    };
  }
}
